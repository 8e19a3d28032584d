/**
 * @file adamw.h
 * @brief AdamW over all parameters of a model: clipping, warm-up, cosine.
 */
#ifndef TRAIN_ADAMW_H
#define TRAIN_ADAMW_H

#include "train/model.h"

/** The optimizer's settings; they stand as they are in a checkpoint. */
typedef struct adamw_config {
    double lr;      /**< the highest learning rate */
    double beta[2]; /**< of the running means */
    double eps;     /**< added to the root */
    double decay;   /**< weight decay */
    double clip;    /**< the gradient's largest global norm */
    double last;    /**< the last learning rate, as a fraction of the highest */
    int64_t warm;   /**< steps of the warm-up */
    int64_t steps;  /**< of the whole training */
} adamw_config;

/** @return the learning rate of a step, 0-based: it rises over `warm` steps, then follows half a
 * cosine to the last step. */
double adamw_rate(const adamw_config *c, int64_t step);

/** @return the global norm of all gradients; it may not be finite. */
double adamw_norm(const model *m);

/** Update all parameters.
 *  @param m     with gradients
 *  @param c     the settings
 *  @param norm  of adamw_norm(), finite
 *  @param step  0-based */
void adamw_apply(model *m, const adamw_config *c, double norm, int64_t step);

#endif
