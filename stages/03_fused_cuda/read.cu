/** @file
 *  @brief Copy results out of the blocks, without the padding: to the caller's tensor on the
 * device, or by way of a buffer there to the host's. */
#include "load.cuh"

enum { READ_WARPS = 8 /* of a CUDA block, a row each */ };

/* Rows first.. of to [rows,Hkv,D], up to element `end` of all: row g_key[i] of each head, or row i
 * if that is NULL. Grid: 8 rows, a warp each. */
static __global__ void __launch_bounds__(READ_WARPS *WARP_SIZE)
    unpack_kernel(key_view from, const int64_t *g_key, int64_t end, nsa_target to) {
    const int64_t m = (int64_t)blockIdx.x * READ_WARPS + threadIdx.x / WARP_SIZE;
    const int64_t i = to.first + m / from.Hkv, element = i * from.Hkv * from.D;
    const int h = (int)(m % from.Hkv);
    if (element + h * from.D >= end)
        return;
    const int64_t key = g_key ? g_key[i] : i;
    for (int c = lane_id(); c < from.D && element + h * from.D + c < end; c += WARP_SIZE)
        nsa_store_element(to.data, to.dtype, m * from.D + c, *element_at(&from, h, key, c));
}

/* to [rows,Hkv,D] out of rows, those of `key` or all. */
static nsa_status read_view(stage *st, const nsa_tensor *to, key_view from, const int64_t *key) {
    const int64_t count = nsa_count(to), size = (int64_t)from.Hkv * from.D;
    const int64_t rows = (count + size - 1) / size;
    for (int64_t r = 0, n; r < rows; r += n) {
        const nsa_target at = nsa_find_target(&st->staging, to, size, r, rows, &n);
        const int64_t end = (r + n) * size < count ? (r + n) * size : count;
        LAUNCH(unpack_kernel, (unsigned)((n * from.Hkv + READ_WARPS - 1) / READ_WARPS),
               READ_WARPS * WARP_SIZE, 0, st, from, key, end, at);
        TRY(nsa_copy_target(&st->streams, &st->staging, to, r * size, end));
    }
    return nsa_stream_finish(&st->streams);
}

/* to [rows,D] = src [rows,padded] without the padding: the rows of one head. */
static nsa_status read_rows(stage *st, const nsa_tensor *to, real *src, int D, int padded) {
    return read_view(st, to, gradient_view{NULL, src, 0, 1, D, D, padded}, NULL);
}

/* An array without padding, in rows of any width. */
static nsa_status read_array(stage *st, const nsa_tensor *to, real *src) {
    return read_rows(st, to, src, TILE_COLS, TILE_COLS);
}

/* Keys, values or their gradients of one branch, from blocks to [T or N,Hkv,D]. */
static nsa_status read_keys(stage *st, int branch, key_view from, const nsa_tensor *to) {
    return read_view(st, to, from, branch == CMP ? st->cmp.key : st->key);
}

nsa_status read(void *self, nsa_id id, const nsa_tensor *to) {
    stage *st = (stage *)self;
    const dims *c = &st->c;
    const int kv = (int)id - NSA_DK_CMP, phi = (int)id - NSA_DPHI_K_PE; /* among such gradients */
    switch (id) {
    case NSA_OUT:
        return read_rows(st, to, st->out, c->dv, c->dvp);
    case NSA_OUT_CMP:
    case NSA_OUT_SLC:
    case NSA_OUT_WIN:
        return read_rows(st, to, st->out_x[id - NSA_OUT_CMP], c->dv, c->dvp);
    case NSA_OUT_CAUSAL:
        return read_rows(st, to, st->out_causal, c->dv, c->dvp);
    case NSA_BLOCK_IDX:
        return nsa_copy_array(&st->streams, to, st->block_idx);
    case NSA_IMPORTANCE:
        return read_array(st, to, st->importance);
    case NSA_K_PHI:
    case NSA_V_PHI:
        return read_keys(st, CMP, view_of(st, &st->in[CMP], id - NSA_K_PHI), to);
    case NSA_DQ:
        return read_rows(st, to, st->dq, c->dk, c->dkp);
    case NSA_DGATE:
        return read_array(st, to, st->dgate);
    default:
        break;
    }
    if (phi >= 0)
        return read_array(st, to, st->dphi[phi / WEIGHTS][phi % WEIGHTS]);
    if (kv >= 0)
        return read_keys(st, kv < PAIR ? RAW : kv / PAIR,
                         gradient_view_of(st, kv < PAIR ? RAW : kv / PAIR, kv % PAIR), to);
    return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage keeps no %s", nsa_name(id));
}
