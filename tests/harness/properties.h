/**
 * @file properties.h
 * @brief What must hold for every stage: one function for each property, judged on one case at a
 * time.
 */
#ifndef HARNESS_PROPERTIES_H
#define HARNESS_PROPERTIES_H

#include "harness/compare.h"
#include "harness/parts.h"
#include "harness/run.h"

/** What a property needs besides forward; without it, its trials are skipped. SAMPLED: it runs a
 * stage so often that on the simulator it is judged only on the cases marked PATH (cases.h). */
enum { NEEDS_NOTHING = 0, NEEDS_BACKWARD = 1, NEEDS_PREFILL = 2, SAMPLED = 4 };

/** A property. `judge` returns NSA_OK if it holds; otherwise nsa_last_error() says why. It notes
 * the results of single parts (parts.h). No status that a stage returns skips a trial: what cannot
 * be judged is known before. */
typedef struct property {
    const char *name;                                          /**< "forward" */
    const char *says;                                          /**< one line of what must hold */
    part_set parts;                                            /**< the parts that it judges */
    int flags;                                                 /**< NEEDS_... | SAMPLED */
    int (*applies)(const subject *s, const test_case *c);      /**< 1 if it applies to the case */
    nsa_status (*judge)(const subject *s, const test_case *c); /**< the judgement */
    const char *(*cannot)(const subject *s); /**< why it cannot be judged here; NULL: it can */
} property;

/** The properties, and how many there are. */
extern const property properties[];
/** How many. */
extern const int property_count;

/** Compare out and the three branch outputs with the oracle's. */
nsa_status compare_outputs(const subject *s, const nsa_tensors *a, const nsa_tensors *b);

/** Compare one output with the oracle's and note its part. @return NSA_OK */
nsa_status note_output(const subject *s, nsa_id id, const nsa_tensors *a, const nsa_tensors *b);

/** Compare one gradient with the oracle's and note its part; nothing if the stage has no backward.
 *  @param s      the stage that is judged
 *  @param id     of the gradient
 *  @param units  of the gradients of the inputs of both
 *  @param a      results of the stage
 *  @param b      results of the oracle
 *  @return NSA_OK */
nsa_status note_gradient(const subject *s, nsa_id id, const gradient_units *units,
                         const nsa_tensors *a, const nsa_tensors *b);

/** note_gradient() for every gradient of the config. @return NSA_OK */
nsa_status note_gradients(const subject *s, const gradient_units *units, const nsa_tensors *a,
                          const nsa_tensors *b);

/** Judge a selection against the oracle's, with the slack that the case allows. */
nsa_status compare_block_idx(const subject *s, const test_case *c, const nsa_tensors *in,
                             const nsa_tensor *mine, const nsa_tensors *oracle);

/** Which branches see everything in this case.
 *  @param c              the case
 *  @param[out] is_dense  [3] cmp, slc, win */
void limits_of(const test_case *c, int *is_dense);

/** Draw forced block lists, in any order and with holes, into `in`. */
nsa_status draw_forced(const test_case *c, nsa_tensors *in);

/** Why no_malloc cannot be judged for this stage in this program, NULL if it can. */
const char *no_malloc_cannot(const subject *s);

/** Why threads cannot be judged for this stage, NULL if it can. */
const char *threads_cannot(const subject *s);

/** Counts allocations since the program began; NULL where the program does not count them. */
extern long (*harness_allocations)(void);

/* One declaration for each property; the table in suite.c says what each means. */
nsa_status judge_forward(const subject *s, const test_case *c);  /**< outputs and selection */
nsa_status judge_branches(const subject *s, const test_case *c); /**< one-hot gates */
nsa_status judge_forced(const subject *s, const test_case *c);   /**< forced block lists */
nsa_status judge_limits(const subject *s, const test_case *c); /**< dense attention in the limit */
nsa_status judge_vector(const subject *s, const test_case *c); /**< conformance expectations */
nsa_status judge_rows(const subject *s, const test_case *c);   /**< sampled rows */
nsa_status judge_backward(const subject *s, const test_case *c);    /**< every gradient */
nsa_status judge_differences(const subject *s, const test_case *c); /**< central differences */
nsa_status judge_decode(const subject *s, const test_case *c);      /**< decode = forward */
nsa_status judge_reads(const subject *s, const test_case *c);       /**< tokens a query reads */
nsa_status judge_causality(const subject *s, const test_case *c);   /**< no look ahead */
nsa_status judge_packing(const subject *s, const test_case *c);     /**< sequences on their own */
nsa_status judge_nan(const subject *s, const test_case *c);        /**< NaN stays where it may be */
nsa_status judge_nan_order(const subject *s, const test_case *c);  /**< NaN ranks last */
nsa_status judge_equal(const subject *s, const test_case *c);      /**< equal compressed tokens */
nsa_status judge_repeat(const subject *s, const test_case *c);     /**< bitwise repeatable */
nsa_status judge_threads(const subject *s, const test_case *c);    /**< any number of threads */
nsa_status judge_no_malloc(const subject *s, const test_case *c);  /**< no allocation in a call */
nsa_status judge_bad_config(const subject *s, const test_case *c); /**< rules broken one by one */
nsa_status judge_bad_input(const subject *s, const test_case *c);  /**< wrong tensors and order */
nsa_status judge_bfloat16(const subject *s, const test_case *c);   /**< bfloat16 tensors */
nsa_status judge_device(const subject *s, const test_case *c);     /**< tensors on a device */
nsa_status judge_graph(const subject *s, const test_case *c);      /**< calls as a graph */
nsa_status judge_graph_step(const subject *s, const test_case *c); /**< decode steps as a graph */
nsa_status judge_bad_device(const subject *s, const test_case *c); /**< wrong pointers, streams */

#endif
