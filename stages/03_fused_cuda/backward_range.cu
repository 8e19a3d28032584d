/** @file
 *  @brief Backward by queries: dq over compressed and window keys, where neighbouring rows see the
 *  same keys.
 *
 *  The warps are specialised as in backward_keys.cu, each product at a step of its own: some make P
 *  of block i, others dS of block i-1, the rest add dS K of block i-2 to dq. */
#include "backward.cuh"

enum {
    RANGE_WARPS = 16, /* warps of a CUDA block; the maximum */
    MAX_PAIRS = 4,    /* pairs of row tiles, one 32 x 64 tile each */
    LD_DS = 36,       /* row stride of dS^T [64 keys][32 rows], against bank conflicts */
    PAIR_P = PAIR_ROWS * BLOCK,
    PAIR_DS = BLOCK * LD_DS
};

/* The blocks that some row of the CUDA block sees, in both branches. */
typedef struct visible_blocks {
    int64_t first[2]; /* within the head; CMP, then WIN */
    int count[2];
} visible_blocks;

static __device__ void find_visible_blocks(const grad_args *a, int64_t row0, int rows,
                                           visible_blocks *to) {
    for (int i = 0; i < 2; i++) {
        const int branch = i ? WIN : CMP;
        int64_t lo = INT64_MAX, end = 0;
        for (int64_t r = row0; r < row0 + rows && r < a->R; r++) {
            const key_range visible = visible_range(&a->c, branch, a->row_t[r]);
            const int64_t first = a->seqs[a->row_seq[r]].first[branch];
            if (visible.lo >= visible.hi)
                continue;
            lo = first + visible.lo / BLOCK < lo ? first + visible.lo / BLOCK : lo;
            end = first + (visible.hi - 1) / BLOCK + 1 > end ? first + (visible.hi - 1) / BLOCK + 1
                                                             : end;
        }
        to->first[i] = lo < end ? lo : 0;
        to->count[i] = lo < end ? (int)(end - lo) : 0;
    }
}

/* The branch and block of one step. */
typedef struct step_coord {
    int branch;
    int64_t seq_block, block; /* index within the head, and among all heads */
} step_coord;

static __device__ __forceinline__ step_coord step_coord_of(const grad_args *a,
                                                           const visible_blocks *s_visible, int i,
                                                           int h) {
    const int window = i >= s_visible->count[0];
    step_coord coord;
    coord.branch = window ? WIN : CMP;
    coord.seq_block = s_visible->first[window] + (window ? i - s_visible->count[0] : i);
    coord.block = h * a->in[coord.branch].stride + coord.seq_block;
    return coord;
}

/* Mask of the keys of a step that row r sees; blocks of other sequences lie outside of its
 * range. */
static __device__ __forceinline__ uint64_t row_mask(const grad_args *a, const step_coord *coord,
                                                    int64_t r) {
    const key_range visible = visible_range(&a->c, coord->branch, a->row_t[r]);
    const int64_t sequence_block = coord->seq_block - a->seqs[a->row_seq[r]].first[coord->branch];
    return sequence_block < 0 ? 0 : key_mask(visible.lo, visible.hi, (int)sequence_block * BLOCK);
}

/* Store dS of a pair transposed; `to` is the lane's address in [64 keys][LD_DS]. */
static __device__ __forceinline__ void store_columns(float *to, const acc_32x64 *x) {
#pragma unroll
    for (int j = 0; j < 2 * LANE_COLS; j++) {
        float *column = to + (j % LANE_COLS + j / LANE_COLS * TILE_COLS / 2) * LD_DS;
        store4(column, x->x[0][j], x->x[1][j], x->x[2][j], x->x[3][j]);
        store4(column + 4, x->x[4][j], x->x[5][j], x->x[6][j], x->x[7][j]);
    }
}

/* dq of 2 `pairs` neighbouring rows of one head tile, over compressed and window keys. For each
 * pair one warp makes P, one makes dS, and one for each 64 columns sums dq. Grid (rows / (2 pairs),
 * the last rows first; Hkv * GT); shared memory: range_bytes(). */
static __global__ void __launch_bounds__(RANGE_WARPS *WARP_SIZE, 1)
    dq_range_kernel(const grad_args a, int pairs) {
    NSA_DYNAMIC_SHARED(float, s_all);
    __shared__ visible_blocks s_visible;
    const dims *c = &a.c;
    const int role = (int)threadIdx.x / WARP_SIZE / pairs,
              pair = (int)threadIdx.x / WARP_SIZE % pairs;
    const int h = (int)blockIdx.y / c->GT;
    const int64_t row0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * 2 * pairs;
    const int64_t my_row = row0 + 2 * pair + lane_row_32x64() / TILE_ROWS;
    const bool valid_row = my_row < a.R; /* rows past the end see nothing */
    const int64_t r = valid_row ? my_row : a.R - 1;
    const int64_t tile = r * c->Hkv * c->GT + blockIdx.y, tiles = a.R * c->Hkv * c->GT;
    const int row = lane_row_32x64() % TILE_ROWS,
              p_offset = lane_row_32x64() * BLOCK + lane_col_32x64();
    float *s_staging =
        s_all + 2 * pairs * (PAIR_P + PAIR_DS) + (int)threadIdx.x / WARP_SIZE * STAGING_FLOATS;
    float *s_p = s_all + pair * PAIR_P;
    float *s_ds = s_all + 2 * pairs * PAIR_P + pair * PAIR_DS;
    if (threadIdx.x == 0)
        find_visible_blocks(&a, row0, 2 * pairs, &s_visible);
    __syncthreads();
    const int steps = s_visible.count[0] + s_visible.count[1];
    acc_32x64 acc;
    zero_acc_32x64(&acc);
#pragma unroll 1
    for (int i = 0; i < steps + 2; i++) {
        const int my_step = i - (role < 2 ? role : 2);
        const step_coord coord = step_coord_of(&a, &s_visible, my_step, h);
        float *s_p_step = s_p + (my_step & 1) * pairs * PAIR_P;
        float *s_ds_step = s_ds + (my_step & 1) * pairs * PAIR_DS;
        if (my_step < 0 || my_step >= steps) {
        } else if (role < 2) { /* P, or dS from it */
            const int d8 = role ? c->dv8 : c->dk8;
            const real *x = (role ? a.dout_t : a.q_t) + tile * d8 * TILE_ROWS;
            const real *y =
                (role ? a.in[coord.branch].vt : a.in[coord.branch].kt) + coord.block * d8 * BLOCK;
            const float4 *terms = a.terms + (coord.branch * tiles + tile) * TILE_ROWS + row;
            zero_acc_32x64(&acc);
            warp_matmul_32x64<true, false>(&acc, x, 0, y, BLOCK, d8, NULL, 0, s_staging);
            if (role == 0) {
                recompute_p_32x64(c, &acc, terms, valid_row ? row_mask(&a, &coord, r) : 0,
                                  s_p_step + p_offset);
            } else {
                compute_ds_32x64(c, &acc, terms, s_p_step + p_offset);
                store_columns(s_ds_step + lane_col_32x64() * LD_DS + lane_row_32x64(), &acc);
            }
        } else {
            const uint64_t mask = valid_row ? row_mask(&a, &coord, r) : 0;
            const real *k =
                a.in[coord.branch].k + coord.block * BLOCK * c->dkp + (role - 2) * TILE_COLS;
            const float *s_a = s_ds_step + lane_row_32x64();
            if (__all_sync(0xffffffffu, mask == ~(uint64_t)0))
                warp_matmul_32x64<false, false>(&acc, s_a, LD_DS, k, c->dkp, BLOCK, NULL, 0,
                                                s_staging);
            else
                warp_matmul_32x64<false, true>(&acc, s_a, LD_DS, k, c->dkp, BLOCK, NULL, mask,
                                               s_staging);
        }
        __syncthreads();
    }
    const int g = (int)blockIdx.y % c->GT * TILE_ROWS + row;
    real *to =
        a.dq + (r * c->Hq + h * c->G + g) * c->dkp + (role - 2) * TILE_COLS + lane_col_32x64();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float *x = acc.x[i];
        if (role >= 2 && valid_row && g + i < c->G) {
            store4(to + i * c->dkp, x[0], x[1], x[2], x[3]);
            store4(to + i * c->dkp + TILE_COLS / 2, x[4], x[5], x[6], x[7]);
        }
    }
}

/* ----------------------------------------------------------------- host */

/* P and dS^T of two steps, and the staging buffers of all warps. */
static size_t range_bytes(const dims *c, int pairs) {
    const int warps = pairs * (2 + c->dkp / TILE_COLS);
    return (size_t)(pairs * 2 * (PAIR_P + PAIR_DS) + warps * STAGING_FLOATS) * sizeof(float);
}

/* Pairs of a CUDA block: as many as its warps and max_shared bytes of shared memory allow. */
nsa_status open_range(scratch *s, const dims *c, size_t max_shared) {
    s->dq_pairs = RANGE_WARPS / (2 + c->dkp / TILE_COLS);
    s->dq_pairs = s->dq_pairs < MAX_PAIRS ? s->dq_pairs : (int)MAX_PAIRS;
    while (s->dq_pairs > 1 && range_bytes(c, s->dq_pairs) + 256 > max_shared)
        s->dq_pairs--;
    return nsa_allow_shared(dq_range_kernel);
}

/* dq of all rows over compressed and window keys. */
nsa_status backward_range(stage *st, const grad_args *args) {
    const dims *c = &args->c;
    const int pairs = ((const scratch *)st->scratch)->dq_pairs;
    const int warps = pairs * (2 + c->dkp / TILE_COLS);
    const dim3 grid((unsigned)((args->R + 2 * pairs - 1) / (2 * pairs)),
                    (unsigned)(c->Hkv * c->GT));
    NSA_LAUNCH(dq_range_kernel, grid, warps * WARP_SIZE, range_bytes(c, pairs), st->stream, *args,
               pairs);
    NSA_LAUNCHED("dq_range");
    return NSA_OK;
}
