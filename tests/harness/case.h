/**
 * @file case.h
 * @brief A test case: a config, the packed sequences, and the inputs drawn from its seed.
 *
 * A case is a string, so that a failure can be replayed: "T=97,Hq=4,Hkv=2,dk=8,dv=6,l=8,...". Keys
 * that are left out have small defaults (case_defaults). "vector=NAME" is a folder of
 * tests/vectors.
 */
#ifndef HARNESS_CASE_H
#define HARNESS_CASE_H

#include "nsa_stage.h"

/** How the inputs are drawn. */
typedef enum case_data {
    DATA_NORMAL = 0, /**< normal values */
    DATA_TIES,       /**< every compressed key equal: all importances tie */
    DATA_PLANTED,    /**< compressed keys repeat every two selection blocks: planted exact ties */
    DATA_LARGE,      /**< queries 40 times larger: probabilities that underflow; for a bfloat16
                        stage with other compressed keys (edges.c) */
    DATA_HUGE,       /**< values of 5e29 to 1e30 */
    DATA_BIG,        /**< queries, keys, values and dout of 5e5 to 1e6: needs a small scale */
    DATA_LOW,        /**< exact scores about -123000 (scale=0.7: the product is rounded) */
    DATA_HIGH,       /**< exact scores about 9.2e6 (scale=7) */
    DATA_RISING,     /**< exact scores that start at -30720 and rise by about 0.5 a token (scale=1);
                        values as in DATA_HUGE */
    DATA_TINY,       /**< importances about 1e-32, except the first block's (scale=1) */
    DATA_SHIFTED,    /**< 128 added to the gated compressors' biases; softmax ignores it */
    DATA_SHUT,       /**< some gates are exactly 0, some exactly 1 */
    DATA_FAINT,      /**< queries divided by scale, so that scores have order 1 */
    DATA_KINDS       /**< how many there are */
} case_data;

/** One case. */
typedef struct test_case {
    char text[320];   /**< the string it came from */
    nsa_config cfg;   /**< resolved */
    int64_t lens[16]; /**< tokens of each packed sequence */
    int seqs;         /**< how many; 0 for one sequence without cu_seqlens */
    int64_t rows;     /**< sampled query rows; 0 for all */
    case_data data;   /**< how inputs are drawn */
    uint64_t seed;    /**< of the inputs */
    char vector[64];  /**< a folder of tests/vectors, or "" */
} test_case;

/** Read a case string. @return NSA_ERR_CONFIG with a text that names what is wrong. */
nsa_status case_parse(const char *text, test_case *c);

/** @return 1 if scores tie exactly: then selection has no slack in any arithmetic. */
int case_has_ties(const test_case *c);

/** @return tokens of the longest sequence. */
int64_t case_max_len(const test_case *c);

/** @return sequences of the pack, at least 1. */
int case_sequences(const test_case *c);

/** @return tokens of sequence b. */
int64_t case_length(const test_case *c, int b);

/** Draw (or read) the inputs, with dout; float32 values, rounded to bfloat16 for a bfloat16 stage
 * (except gates). Every tensor is fenced; free with tensors_free(). */
nsa_status case_inputs(const test_case *c, nsa_arith arith, nsa_tensors *in);

/** Draw rows to sample: the first of `all`, the last, and seeded ones between, `count` if there are
 * so many. Free with tensor_free(). */
nsa_status case_rows(int64_t all, int64_t count, uint64_t *state, nsa_tensor *rows);

/** Read expect/ of a vector; results absent there stay absent. */
nsa_status case_expectations(const test_case *c, nsa_tensors *expect);

/** @return the folder of the vectors: $NSA_VECTORS, or relative to the running program. */
const char *case_vector_dir(void);

/** Round to the nearest bfloat16, ties to even; NaN stays NaN. */
float round_bfloat16(float x);

#endif
