/** @file
 *  @brief Transfers and layouts: what load.cu does for the other files. */
#ifndef LOAD_CUH
#define LOAD_CUH

#include "stage.cuh"

/* Floats of one transfer, or of one token if that is more. NSA_DEBUG_MEMORY makes it short, so that
 * small tensors take several transfers too. */
enum { CHUNK = 1 << 20, SHORT_CHUNK = 1 << 10 };

/* Keys or values of one kv_blocks, or their gradients, which are natural. A key's index is its
 * sequence's first block times BLOCK plus its position. A head's natural blocks follow each other,
 * so they are rows of Dp floats, one for each index. */
typedef struct key_view {
    real *transposed, *natural; /* [D8,BLOCK] and [BLOCK,Dp] blocks; NULL if not there */
    int64_t stride;
    int Hkv, D, D8, Dp;
} key_view;

typedef key_view gradient_view;

/* Element c of a key of head h. */
static __host__ __device__ __forceinline__ real *element_at(const key_view *x, int64_t h,
                                                            int64_t key, int c) {
    return x->natural + (h * x->stride * BLOCK + key) * x->Dp + c;
}

static __device__ __forceinline__ real *transposed_at(const key_view *x, int64_t h, int64_t key,
                                                      int c) {
    return x->transposed + ((h * x->stride + key / BLOCK) * x->D8 + c) * BLOCK + key % BLOCK;
}

/* Element c of a key of head h, in both layouts; nothing if `key` is -1. */
static __device__ __forceinline__ void store_key(const key_view *to, int64_t h, int64_t key, int c,
                                                 float x) {
    if (to->transposed && key >= 0)
        *transposed_at(to, h, key, c) = x;
    if (to->natural && key >= 0)
        *element_at(to, h, key, c) = x;
}

key_view view_of(const stage *st, const kv_blocks *in, int pair);
/* The gradients of a branch's keys or values. */
gradient_view gradient_view_of(const stage *st, int branch, int pair);
/* Zeros, in padding too. */
nsa_status zero_blocks(stage *st, const kv_blocks *in);

nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch);
nsa_status load_dout(void *self, const nsa_tensor *dout);
/* Queries and gates of R rows: those of the tokens listed, on host and device, or the first. */
nsa_status load_queries(stage *st, const nsa_tensors *in, const int64_t *tokens,
                        const int64_t *g_tokens, int64_t R);
/* Keys and values of `count` tokens into the blocks `to` [LAYOUTS]: token i as key number key[i],
 * which is on the device. */
nsa_status load_keys(stage *st, const nsa_tensors *in, const int64_t *key, int64_t count,
                     const kv_blocks *to);
/* The same for rows row.. of one tensor [rows,Hkv,D]; a row whose key is -1 is left out. */
nsa_status pack_keys(stage *st, nsa_source x, const int64_t *key, int64_t row, int64_t count,
                     key_view to);
/* Block lists to st->forced_idx, for `rows` rows; sets st->forced. `checked`: the lists of a host
 * tensor, already sorted. g_token, g_t: token and position of each row, to sort a device tensor's.
 * With NSA_CHECK_VALUES an error if these or the gates, loaded before, break a rule. */
nsa_status load_block_lists(stage *st, const nsa_tensor *idx, const int32_t *checked,
                            const int64_t *g_token, const int32_t *g_t, int64_t rows);
#endif
