/**
 * @file difference.h
 * @brief How far two tensors differ; shared by compare.c and gradient.c.
 */
#ifndef HARNESS_DIFFERENCE_H
#define HARNESS_DIFFERENCE_H

#include "nsa.h"

/** How far tensor a differs from tensor b. */
typedef struct difference {
    double rms;         /**< of a - b */
    double max;         /**< the largest abs(a - b) */
    double max_b;       /**< the largest abs(b) */
    double rms_b;       /**< of b */
    int64_t index;      /**< of the largest difference */
    int64_t non_finite; /**< the first element that is not finite in a; -1 if none */
} difference;

/** Measure a against b. @return an error if shapes differ or an element of a is not finite. */
nsa_status measure(nsa_id id, const nsa_tensor *a, const nsa_tensor *b, difference *d);

#endif
