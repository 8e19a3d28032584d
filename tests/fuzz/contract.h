/**
 * @file contract.h
 * @brief Parts of the contract's fuzz target: inputs drawn from bytes, and a limit on memory.
 */
#ifndef FUZZ_CONTRACT_H
#define FUZZ_CONTRACT_H

#include "fuzz/bytes.h"
#include "nsa_stage.h"

/** Inputs of one call, each in memory of exactly its size. */
typedef struct drawn {
    nsa_tensors in; /**< for nsa_load() or nsa_load_step() */
    int tame;       /**< every value is small, so results must be finite */
    int legal;      /**< nothing was broken on purpose */
    int elsewhere;  /**< some tensor is said not to lie on the host: the call must fail */
} drawn;

/** Draw the inputs of a load of up to cfg->seq_len tokens, mostly legal ones. */
void draw_load(choices *b, const nsa_config *cfg, int with_dout, drawn *d);

/** Draw the inputs of a decode step.
 *  @param b       the bytes to draw from
 *  @param cfg     the shape
 *  @param ctx     for the length of each slot, which limits the blocks of a list
 *  @param[out] d  free with free_drawn() */
void draw_step(choices *b, const nsa_config *cfg, nsa_context *ctx, drawn *d);

/** Draw the gradient of an output of T tokens. */
void draw_dout(choices *b, const nsa_config *cfg, int64_t T, drawn *d);

/** Free what was drawn. */
void free_drawn(drawn *d);

/** Allocate a tensor's exact size; data stays NULL if that is 0 or too large. */
void alloc_exact(nsa_tensor *t);

/** From now on the code under test gets at most `bytes` bytes in `calls` allocations. */
void memory_limit(size_t bytes, int64_t calls);

/** Remove the limit. @return 1 if a call was refused since memory_limit(). */
int memory_unlimit(void);

/** malloc without a limit. */
void *memory_alloc(size_t bytes);

#endif
