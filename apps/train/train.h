/**
 * @file train.h
 * @brief A training: its state, its loop, its checkpoints.
 */
#ifndef TRAIN_TRAIN_H
#define TRAIN_TRAIN_H

#include "train/recall.h"

/** What the command line says. */
typedef struct train_options {
    const char *who;        /**< prefix of errors */
    const nsa_stage *stage; /**< the attention */
    const char *stage_name; /**< as it is shown */
    attention_kind kind;    /**< of attention */
    nsa_phi phi;            /**< the compressor */
    int64_t seed;           /**< of weights, batches and random blocks */
    int64_t threads;        /**< for the stage and the layers */
    int64_t steps;          /**< of the whole schedule */
    int64_t stop;           /**< the step to stop after; 0: none */
    int64_t every;          /**< steps between checkpoints */
    double lr;              /**< 0: the task's */
    char *checkpoint;       /**< the file to write; NULL: none */
    char *resume;           /**< the file to go on from; NULL: none */
} train_options;

/** Where a training stands, apart from its weights; all of it is in a checkpoint. */
typedef struct train_state {
    int64_t step;     /**< steps done */
    int64_t pairs;    /**< of the curriculum */
    double average;   /**< moving average of the accuracy in training */
    int64_t good;     /**< evaluations of .99 in a row */
    int64_t first_95; /**< the step of the first evaluation of .95; 0: none yet */
} train_state;

/** What a training came to. */
typedef struct train_result {
    train_state state;  /**< at the end */
    double loss;        /**< of the last step */
    double accuracy;    /**< of the last step's own batch */
    recall_score score; /**< at the end */
    double with_random; /**< accuracy with random blocks; NSA alone */
    int64_t parameters; /**< numbers learned */
    double seconds;     /**< of this run */
} train_result;

/** Train on recall and print the progress.
 *  @param o            what the command line says
 *  @param[out] result  what it came to
 *  @return NSA_OK, or the first error; nsa_last_error() has its text */
nsa_status train_recall(const train_options *o, train_result *result);

/** Everything that has to agree between a checkpoint and a run, and everything that is read. */
typedef struct checkpoint {
    model *m;                /**< its config is compared, its weights are written or read */
    const adamw_config *opt; /**< compared */
    int64_t seed;            /**< compared */
    train_state *state;      /**< written or read */
} checkpoint;

/** Write a checkpoint: to FILE.part, which is then renamed.
 *  @return NSA_ERR_IO naming the file; the old file is then still there */
nsa_status checkpoint_write(const char *path, const checkpoint *c);

/** Read a checkpoint of the same model and training into `c`.
 *  @return NSA_ERR_IO or NSA_ERR_INPUT naming the file and what is wrong with it; the weights and
 *  the state are then as before */
nsa_status checkpoint_read(const char *path, const checkpoint *c);

#endif
