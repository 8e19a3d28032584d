/**
 * @file tensors.h
 * @brief The table of all tensors: names, and shapes written in the letters of the specification.
 */
#ifndef NSA_TENSORS_H
#define NSA_TENSORS_H

#include "nsa.h"

/** Lengths that a config does not fix. */
typedef struct nsa_lengths {
    int64_t T; /**< tokens, of a load or a step */
    int64_t R; /**< rows of results */
    int64_t N; /**< compressed tokens */
    int64_t J; /**< selection blocks of the longest sequence */
} nsa_lengths;

enum { NSA_PHI_EACH = 7 /**< weights of one compressor: pe, w, b, w1, b1, w2, b2 */ };

/** Fill in ndim and shape of a tensor as an input (`as_result` 0) or a result (1); dtype is
 * unchanged. Tensors whose length the caller chooses (cu_seqlens, rows, active) get -1 there. */
NSA_EXPORT void nsa_shape(const nsa_config *config, const nsa_lengths *lengths, nsa_id id,
                          int as_result, nsa_tensor *tensor);

/** @return elements of a compressor's weight, by its shape in the specification.
 *  @param config  the shape
 *  @param pair    0 the keys' compressor, 1 the values'
 *  @param weight  0..6: pe, w, b, w1, b1, w2, b2 */
NSA_EXPORT int64_t nsa_weight_count(const nsa_config *config, int pair, int weight);

/** @return the input whose gradient `id` is (NSA_DQ gives NSA_Q), NSA_ID_COUNT if it is none. */
NSA_EXPORT nsa_id nsa_gradient_of(nsa_id id);

/** @return the value of a bfloat16. */
NSA_EXPORT float nsa_bf16_to_f32(uint16_t x);

/** @return the nearest bfloat16, of two the even one; a NaN stays one. */
NSA_EXPORT uint16_t nsa_bf16_from_f32(float x);

/** Copy `count` elements from element `first` of a float tensor, converting to double. */
NSA_EXPORT void nsa_copy_f64(double *dst, const nsa_tensor *src, int64_t first, int64_t count);

/** Copy `count` elements from element `first` of a float tensor, converting to float. */
NSA_EXPORT void nsa_copy_f32(float *dst, const nsa_tensor *src, int64_t first, int64_t count);

#endif
