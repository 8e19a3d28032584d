/**
 * @file embed.h
 * @brief Queries, keys, values, gates and compressor weights made by hand from a text. Nothing here
 * is trained: everything is a function of the bytes and of fixed seeds.
 */
#ifndef DEMO_EMBED_H
#define DEMO_EMBED_H

#include "demo/demo_text.h"
#include "nsa.h"

enum {
    DEMO_HEADS = 4,    /**< Hq; one group, so they share their selected blocks */
    DEMO_KV_HEADS = 1, /**< Hkv */
    DEMO_DIM = 64,     /**< dk = dv */
    DEMO_ROTARY = 16,  /**< dims of a key that RoPE turns; the others hold content alone */
    DEMO_GRAM = 5      /**< bytes of an n-gram: the token's own and the ones before */
};

/** The operator's config and inputs, with the memory behind them. */
typedef struct demo_model {
    nsa_config cfg;              /**< resolved */
    nsa_tensors in;              /**< float32 inputs of a load */
    float *memory[NSA_ID_COUNT]; /**< what `in` points to */
} demo_model;

/** Make all inputs of a text.
 *  @param text        with its passage planted
 *  @param[out] model  for demo_model_free(), on success
 *  @return the operator's own status; or NSA_ERR_MEMORY */
nsa_status demo_embed(const demo_text *text, demo_model *model);

/** Copy a model with q, k, v and the compressor's weights rounded to bfloat16, nearest even: what a
 * bfloat16 stage sees, as the specification has it. Gates stay as they are.
 *  @param from     the model
 *  @param[out] to  for demo_model_free(), on success
 *  @return NSA_OK or NSA_ERR_MEMORY */
nsa_status demo_round(const demo_model *from, demo_model *to);

/** How many of the last tokens a head's query averages.
 *  @param head  query head
 *  @return tokens */
int64_t demo_reach(int64_t head);

/** Free a model's memory; a zeroed model is allowed.
 *  @param model  of demo_embed() or demo_round() */
void demo_model_free(demo_model *model);

#endif
