/**
 * @file recall.h
 * @brief The recall task: pairs of a key and a value stand somewhere in a sequence of noise, and at
 * its end each key comes again; the model is to say its value.
 *
 *     0        8                       160      192                       255
 *     noise    noise, and the pairs    noise    key value key value ... key value
 *
 * Only at the last keys is there a loss. With few pairs the questions repeat, and the window alone
 * can copy; so a training begins with 2 pairs, which are doubled when it answers well.
 */
#ifndef TRAIN_RECALL_H
#define TRAIN_RECALL_H

#include "train/adamw.h"

enum {
    RECALL_T = 256,                /**< tokens of a sequence */
    RECALL_B = 16,                 /**< sequences of a batch */
    RECALL_PAIRS = 32,             /**< the most pairs, and the questions of a sequence */
    RECALL_KEYS = 64,              /**< keys are the tokens 0 to 63 */
    RECALL_VALUES = 16,            /**< values 64 to 79 */
    RECALL_NOISE = 16,             /**< noise 80 to 95 */
    RECALL_ASK = 192,              /**< where the questions begin */
    RECALL_N = RECALL_T * RECALL_B /**< tokens of a batch */
};

/** A batch, and where its answers stand. */
typedef struct recall_batch {
    int32_t token[RECALL_N];          /**< what stands there */
    int32_t target[RECALL_N];         /**< the value at a question's key, else -1 */
    int32_t pos[RECALL_N];            /**< position in the sequence */
    int32_t cu_seqlens[RECALL_B + 1]; /**< where the sequences begin */
    int32_t answer[RECALL_B]
                  [RECALL_PAIRS]; /**< position of each question's value among the pairs */
} recall_batch;

/** What an evaluation found. */
typedef struct recall_score {
    double loss;     /**< mean of the batches; it may not be finite */
    double accuracy; /**< of the questions, with all pairs */
    double selected; /**< how often the value's block is in the question's list of blocks */
} recall_score;

/** What a batch of random numbers is for. */
typedef enum recall_use {
    RECALL_TRAIN,    /**< a batch to train on */
    RECALL_EVALUATE, /**< one to evaluate on: the same for every training */
    RECALL_BLOCKS    /**< random blocks */
} recall_use;

/** @return the seed of the i-th batch of a use: nothing of the random numbers has to be kept. */
uint64_t recall_seed(uint64_t seed, recall_use use, int64_t i);

/** The model and the optimizer of this task.
 *  @param kind        of attention
 *  @param phi         the compressor
 *  @param[out] cfg    of the model
 *  @param[out] opt    the optimizer's, for 1000 steps */
void recall_config(attention_kind kind, nsa_phi phi, model_config *cfg, adamw_config *opt);

/** Draw a batch.
 *  @param[out] r  the batch
 *  @param pairs   1 to RECALL_PAIRS, dividing it
 *  @param seed    of its random numbers
 *  @return the batch as the model takes it; it points into `r` */
batch recall_draw(recall_batch *r, int64_t pairs, uint64_t seed);

/** Evaluate a model on batches with all pairs, the same ones each time.
 *  @param m           the model; its blocks are selected or random afterwards as before
 *  @param batches     how many
 *  @param random      1: throw the free blocks at random
 *  @param[out] score  what was found
 *  @return the status of the stage */
nsa_status recall_evaluate(model *m, int batches, int random, recall_score *score);

#endif
