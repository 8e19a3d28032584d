/** @file
 *  @brief Backward, seen from the queries: dq of the two branches where neighbouring rows see the
 *  same keys, compressed and window.
 *
 *  As in backward_keys.cu each product has its own warps, and each a step of its own: of block i
 *  some make P, of i-1 others dS, of i-2 the rest add dS K to dq. */
#include "backward.cuh"

enum {
    RANGE_WARPS = 16, /* of a CUDA block, at most */
    MOST_PAIRS = 4,   /* row tiles come in pairs, a wide tile each; 2 PAIRS neighbouring rows */
    LD_DS = 36,       /* dS^T [64 keys][32 rows] of a pair, rows so far apart: banks */
    PAIR_P = PAIR_ROWS * BLOCK,
    PAIR_DS = BLOCK * LD_DS
};

/* The blocks that some row of the CUDA block sees, of both branches; on the device's account. */
typedef struct blocks_seen {
    int64_t first[2]; /* in the head; CMP, then WIN */
    int count[2];
} blocks_seen;

static __device__ void find_blocks(const grad_args *a, int64_t row0, int rows, blocks_seen *to) {
    for (int i = 0; i < 2; i++) {
        const int branch = i ? WIN : CMP;
        int64_t lo = INT64_MAX, end = 0;
        for (int64_t r = row0; r < row0 + rows && r < a->R; r++) {
            const key_range seen = seen_range(&a->c, branch, a->row_t[r]);
            const int64_t first = a->seqs[a->row_seq[r]].first[branch];
            if (seen.lo >= seen.hi)
                continue;
            lo = first + seen.lo / BLOCK < lo ? first + seen.lo / BLOCK : lo;
            end = first + (seen.hi - 1) / BLOCK + 1 > end ? first + (seen.hi - 1) / BLOCK + 1 : end;
        }
        to->first[i] = lo < end ? lo : 0;
        to->count[i] = lo < end ? (int)(end - lo) : 0;
    }
}

/* Step i: which branch, which block of head h. */
typedef struct step_at {
    int branch;
    int64_t own, block; /* within the head, of all heads */
} step_at;

static __device__ __forceinline__ step_at step_of(const grad_args *a, const blocks_seen *s_seen,
                                                  int i, int h) {
    const int window = i >= s_seen->count[0];
    step_at at;
    at.branch = window ? WIN : CMP;
    at.own = s_seen->first[window] + (window ? i - s_seen->count[0] : i);
    at.block = h * a->in[at.branch].stride + at.own;
    return at;
}

/* Which keys of a step row r sees; blocks of other sequences lie before or after its own. */
static __device__ __forceinline__ uint64_t row_bits(const grad_args *a, const step_at *at,
                                                    int64_t r) {
    const key_range seen = seen_range(&a->c, at->branch, a->row_t[r]);
    const int64_t own = at->own - a->seqs[a->row_seq[r]].first[at->branch];
    return own < 0 ? 0 : key_bits(seen.lo, seen.hi, (int)own * BLOCK);
}

/* dS of a pair, transposed: `to` is the lane's address in [64 keys][LD_DS]. */
static __device__ __forceinline__ void store_columns(float *to, const wide *x) {
#pragma unroll
    for (int j = 0; j < 2 * LANE_COLS; j++) {
        float *at = to + (j % LANE_COLS + j / LANE_COLS * STRIP / 2) * LD_DS;
        store4(at, x->at[0][j], x->at[1][j], x->at[2][j], x->at[3][j]);
        store4(at + 4, x->at[4][j], x->at[5][j], x->at[6][j], x->at[7][j]);
    }
}

/* dq of 2 `pairs` neighbouring rows of one head group over compressed and window keys. Warps:
 * one a pair for P, one a pair for dS, one a pair and strip of dq. Grid (rows / (2 pairs), the last
 * rows first; Hkv * GT); shared memory: range_bytes(). */
static __global__ void __launch_bounds__(RANGE_WARPS *WARP, 1)
    range_gradients(const grad_args a, int pairs) {
    NSA_DYNAMIC_SHARED(float, s_all);
    __shared__ blocks_seen s_seen;
    const dims *c = &a.c;
    const int role = (int)threadIdx.x / WARP / pairs, pair = (int)threadIdx.x / WARP % pairs;
    const int h = (int)blockIdx.y / c->GT;
    const int64_t row0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * 2 * pairs;
    const int64_t wanted = row0 + 2 * pair + wide_row() / ROWS;
    const bool mine = wanted < a.R; /* the lane's row; the others see nothing */
    const int64_t r = mine ? wanted : a.R - 1;
    const int64_t tile = r * c->Hkv * c->GT + blockIdx.y, tiles = a.R * c->Hkv * c->GT;
    const int row = wide_row() % ROWS, p_at = wide_row() * BLOCK + wide_col();
    float *s_mine = s_all + 2 * pairs * (PAIR_P + PAIR_DS) + (int)threadIdx.x / WARP * SLOT;
    float *s_p = s_all + pair * PAIR_P;
    float *s_ds = s_all + 2 * pairs * PAIR_P + pair * PAIR_DS;
    if (threadIdx.x == 0)
        find_blocks(&a, row0, 2 * pairs, &s_seen);
    __syncthreads();
    const int steps = s_seen.count[0] + s_seen.count[1];
    wide acc;
    zero_wide(&acc);
#pragma unroll 1
    for (int i = 0; i < steps + 2; i++) {
        const int now = i - (role < 2 ? role : 2);
        const step_at at = step_of(&a, &s_seen, now, h);
        float *s_p_now = s_p + (now & 1) * pairs * PAIR_P;
        float *s_ds_now = s_ds + (now & 1) * pairs * PAIR_DS;
        if (now < 0 || now >= steps) {
        } else if (role < 2) { /* P, or dS from it */
            const int d8 = role ? c->dv8 : c->dk8;
            const real *x = (role ? a.dout_t : a.q_t) + tile * d8 * ROWS;
            const real *y =
                (role ? a.in[at.branch].vt : a.in[at.branch].kt) + at.block * d8 * BLOCK;
            const float4 *terms = a.terms + (at.branch * tiles + tile) * ROWS + row;
            zero_wide(&acc);
            product_wide<true, false>(&acc, x, 0, y, BLOCK, d8, NULL, 0, s_mine);
            if (role == 0) {
                store_p(c, &acc, terms, mine ? row_bits(&a, &at, r) : 0, s_p_now + p_at);
            } else {
                make_ds(c, &acc, terms, s_p_now + p_at);
                store_columns(s_ds_now + wide_col() * LD_DS + wide_row(), &acc);
            }
        } else {
            const uint64_t mask = mine ? row_bits(&a, &at, r) : 0;
            const real *k = a.in[at.branch].k + at.block * BLOCK * c->dkp + (role - 2) * STRIP;
            const float *s_at = s_ds_now + wide_row();
            if (__all_sync(0xffffffffu, mask == ~(uint64_t)0))
                product_wide<false, false>(&acc, s_at, LD_DS, k, c->dkp, BLOCK, NULL, 0, s_mine);
            else
                product_wide<false, true>(&acc, s_at, LD_DS, k, c->dkp, BLOCK, NULL, mask, s_mine);
        }
        __syncthreads();
    }
    const int g = (int)blockIdx.y % c->GT * ROWS + row;
    real *to = a.dq + (r * c->Hq + h * c->G + g) * c->dkp + (role - 2) * STRIP + wide_col();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float *x = acc.at[i];
        if (role >= 2 && mine && g + i < c->G) {
            store4(to + i * c->dkp, x[0], x[1], x[2], x[3]);
            store4(to + i * c->dkp + STRIP / 2, x[4], x[5], x[6], x[7]);
        }
    }
}

/* ----------------------------------------------------------------- host */

/* P and dS^T of two steps; what is staged. */
static size_t range_bytes(const dims *c, int pairs) {
    const int warps = pairs * (2 + c->dkp / STRIP);
    return (size_t)(pairs * 2 * (PAIR_P + PAIR_DS) + warps * SLOT) * sizeof(float);
}

/* As many pairs as a CUDA block has warps for, and `room` bytes of shared memory hold. */
nsa_status open_range(scratch *s, const dims *c, size_t room) {
    s->dq_pairs = RANGE_WARPS / (2 + c->dkp / STRIP);
    s->dq_pairs = s->dq_pairs < MOST_PAIRS ? s->dq_pairs : (int)MOST_PAIRS;
    while (s->dq_pairs > 1 && range_bytes(c, s->dq_pairs) + 256 > room)
        s->dq_pairs--;
    return nsa_allow_shared(range_gradients);
}

/* dq of all rows, as far as compressed and window keys make it. */
nsa_status backward_range(stage *st, const grad_args *args) {
    const dims *c = &args->c;
    const int pairs = ((const scratch *)st->scratch)->dq_pairs;
    const int warps = pairs * (2 + c->dkp / STRIP);
    const dim3 grid((unsigned)((args->R + 2 * pairs - 1) / (2 * pairs)),
                    (unsigned)(c->Hkv * c->GT));
    NSA_LAUNCH(range_gradients, grid, warps * WARP, range_bytes(c, pairs), st->stream, *args,
               pairs);
    NSA_LAUNCHED("range_gradients");
    return NSA_OK;
}
