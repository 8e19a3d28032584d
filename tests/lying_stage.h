/**
 * @file lying_stage.h
 * @brief Shared by the lying stage and its lies about results.
 */
#ifndef LYING_STAGE_H
#define LYING_STAGE_H

#include "nsa_stage.h"

/** An open stage, and the inputs that the lies use. */
typedef struct liar {
    void *self;             /**< the real stage's */
    const nsa_plan *plan;   /**< the argument of open */
    const nsa_batch *batch; /**< of the last load */
    const nsa_step *step;   /**< of the last decode; NULL after a load */
    nsa_step changed;       /**< the step that is forwarded */
    int32_t slots[2];       /**< behind changed.slot, or moved.slot */
    int32_t many[64];       /**< behind changed.slot, of a step of many slots */
    nsa_batch moved;        /**< the batch that is forwarded */
    double first_q;         /**< the first element of q, of the last load */
    double last_q;          /**< the last element of q */
    double first_k_win;     /**< the first element */
    double first_v_win;     /**< the first element */
    double first_gate;      /**< the first element */
    int loads;              /**< how many */
    int wide;               /**< the last one's q was float64 */
    int forced;             /**< it had lists of blocks */
    unsigned char *mine;    /**< ten bytes of the pool */
    float *scratch;         /**< one float of the pool that is scratch */
    float stale;            /**< the contents of `scratch` when a later forward began */
} liar;

/** Contexts that are open in this process. */
extern int lying_opened;
/** Calls of forward in this process. */
extern int lying_forwards;

/** @return 1 if there is a lie of that name about a result. */
int lie_of_result(const char *name);

/** Change result `id`, if the lie is about it. `t` has its shape, type and elements. */
void lie_about(const char *name, const liar *s, nsa_id id, const nsa_tensor *t);

/** @return element i, as a double. */
double lying_get(const nsa_tensor *t, int64_t i);

/** Set element i. */
void lying_set(const nsa_tensor *t, int64_t i, double value);

#endif
