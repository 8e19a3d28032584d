/**
 * @file attention.h
 * @brief A layer's attention: one NSA context, and the five kinds of attention that the same
 * operator computes.
 */
#ifndef TRAIN_ATTENTION_H
#define TRAIN_ATTENTION_H

#include "train/layers.h"

/** Kinds of attention. */
typedef enum attention_kind {
    ATTENTION_NSA = 0, /**< all three branches */
    ATTENTION_FULL,    /**< the window alone, as long as the longest sequence */
    ATTENTION_WINDOW,  /**< the window alone */
    ATTENTION_CMP_WIN, /**< compressed tokens and window, nothing selected */
    ATTENTION_RANDOM,  /**< as NSA, but free blocks are thrown at random, in training too */
    ATTENTION_KINDS
} attention_kind;

/** Where the blocks of the selected branch come from. */
typedef enum attention_blocks {
    BLOCKS_SELECTED = 0, /**< the operator selects them */
    BLOCKS_RANDOM,       /**< forced ones kept, the others uniform */
    BLOCKS_GIVEN         /**< those in attention.block_idx */
} attention_blocks;

enum {
    BRANCHES = 3,                                  /**< compressed, selected, window */
    PHI_WEIGHTS = NSA_PHI_LAST - NSA_PHI_FIRST + 1 /**< of both compressors */
};

/** Where one packed batch's sequences begin. */
typedef struct pack {
    int64_t N;                 /**< tokens */
    int64_t B;                 /**< sequences */
    const int32_t *cu_seqlens; /**< [B+1], on the host */
} pack;

/** The attention of one layer. */
typedef struct attention {
    attention_kind kind; /**< which of the five */
    nsa_config cfg;      /**< resolved */
    nsa_context *ctx;    /**< open as long as the layer */
    int pairs;           /**< pairs of keys and values with projections of their own: 1 to 3 */
    int pair[BRANCHES];  /**< which of them each branch reads; the others' gradients are dropped */
    int used;            /**< bit b: branch b has a learned gate; 0: the gate is (0,0,1) */
    int32_t *block_idx;  /**< [T,Hkv,n] on the host: blocks to force, or that were selected */
} attention;

/** The tensors of one forward and backward, where the layers work; keys and values by pair. */
typedef struct attention_io {
    real *q;                 /**< [N,Hq,dk] */
    real *k[BRANCHES];       /**< [N,Hkv,dk] */
    real *v[BRANCHES];       /**< [N,Hkv,dv] */
    real *gate;              /**< [N,Hq,3] */
    real *out;               /**< [N,Hq,dv] */
    real *dq;                /**< the gradient of q */
    real *dk[BRANCHES];      /**< of k */
    real *dv[BRANCHES];      /**< of v */
    real *dgate;             /**< of the gate */
    real *dout;              /**< of out */
    param *phi[PHI_WEIGHTS]; /**< the compressors' weights; NULL where phi has none */
} attention_io;

/** @return "nsa", "full", "window", "cmp+win", "random"; NULL past the last. */
const char *attention_name(attention_kind kind);

/** Fill in what follows from the kind: pairs, gates, and the config, in which branches that are not
 * used shrink.
 *  @param[out] a    its kind, cfg, pairs, pair, used
 *  @param kind      the kind
 *  @param cfg       of NSA
 *  @param longest   tokens of the longest sequence
 *  @return NSA_ERR_CONFIG for a config that breaks a rule */
nsa_status attention_plan(attention *a, attention_kind kind, const nsa_config *cfg,
                          int64_t longest);

/** Open the context of a planned attention.
 *  @param a        from attention_plan()
 *  @param stage    a stage that computes in the trainer's own type
 *  @param threads  it may use
 *  @return the status of nsa_open(), or NSA_ERR_MEMORY */
nsa_status attention_open(attention *a, const nsa_stage *stage, int threads);

/** Fill block_idx with forced blocks and uniform free ones, each row and kv head independently.
 *  @param a      open
 *  @param p      the pack
 *  @param state  of the random numbers */
void attention_random_blocks(attention *a, const pack *p, uint64_t *state);

/** io->out from q, k, v, gate and phi; with `blocks` not BLOCKS_SELECTED block_idx is forced. */
nsa_status attention_forward(attention *a, const pack *p, const attention_io *io,
                             attention_blocks blocks);

/** dq, dk, dv, dgate and the gradients of phi from io->dout, after a forward. */
nsa_status attention_backward(attention *a, const pack *p, const attention_io *io);

/** Read the selected blocks of the last forward into block_idx. */
nsa_status attention_read_blocks(attention *a, const pack *p);

/** Close the context; a zeroed attention is allowed. */
void attention_close(attention *a);

#endif
