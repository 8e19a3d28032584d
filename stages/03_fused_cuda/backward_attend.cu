/** @file
 *  @brief Backward by queries: dgate, the terms that the attention kernels need of a row, and dq of
 *  selected keys. backward_keys.cu goes through the same attention by keys. */
#include "backward.cuh"

/* dgate = <dout,o> of each branch, and the row's terms for the other kernels. Grid (row tiles / 8),
 * 8 warps: a warp has one tile, and loops over its heads. */
static __global__ void __launch_bounds__(8 * WARP_SIZE)
    gate_backward(const grad_args a, const attend_args f, float4 *terms, real *dgate) {
    const dims *c = &a.c;
    const int64_t tiles = a.R * c->Hkv * c->GT;
    const int64_t tile = (int64_t)blockIdx.x * 8 + threadIdx.x / WARP_SIZE;
    const int lane = (int)threadIdx.x % WARP_SIZE, g0 = (int)(tile % c->GT) * TILE_ROWS;
    if (tile >= tiles)
        return;
    for (int i = 0; i < TILE_ROWS; i++) {
        const int64_t head = tile / c->GT * c->G + g0 + i; /* (r*Hkv + h)*G + g = r*Hq + ... */
        const float *dout = a.dout_n + (tile * TILE_ROWS + i) * c->dvp;
        for (int x = 0; x < BRANCHES; x++) {
            float4 term = make_float4(0, 0, 0, 0); /* a row of padding gives P = dS = 0 */
            if (g0 + i < c->G) {
                const row_stats stats = f.stats[head * BRANCHES + x];
                const float gate = f.gate[head * BRANCHES + x];
                float sum = 0;
                for (int col = lane; col < c->dv; col += WARP_SIZE)
                    sum += dout[col] * f.out_x[x][head * c->dvp + col];
                for (int other = 1; other < WARP_SIZE; other *= 2)
                    sum += __shfl_xor_sync(0xffffffffu, sum, other);
                term = make_float4(stats.row_max, stats.inv_sum, gate, sum);
                if (lane == 0)
                    dgate[head * BRANCHES + x] = sum;
            }
            if (lane == 0)
                terms[(x * tiles + tile) * TILE_ROWS + i] = term;
        }
    }
}

/* Position in one row's list of selected blocks. */
typedef struct block_iter {
    int entry, min_block; /* next entry; no block before this one */
} block_iter;

/* The next block of 64 that the row's list touches, and the mask of all its selected keys; 0 when
 * there is none left. */
static __device__ uint64_t next_block(const dims *c, const int32_t *idx, int t, block_iter *iter,
                                      int *block) {
    uint64_t mask = 0;
    for (; iter->entry < c->n && idx[iter->entry] >= 0; iter->entry++) {
        const key_range visible = visible_block(c, idx[iter->entry], t);
        const int from =
            visible.lo / BLOCK > iter->min_block ? visible.lo / BLOCK : iter->min_block;
        if (mask && from > *block)
            break;
        *block = from;
        mask |= key_mask(visible.lo, visible.hi, from * BLOCK);
        if (visible.hi > (from + 1) * BLOCK)
            break; /* it goes on in the next block */
    }
    iter->min_block = *block + 1;
    return mask;
}

/* Prefetch the keys and values of the next block. */
static __device__ __forceinline__ void prefetch_block(const dims *c, const kv_blocks *in,
                                                      int64_t block) {
    prefetch(in->kt + block * c->dk8 * BLOCK, c->dk8 * BLOCK);
    prefetch(in->vt + block * c->dv8 * BLOCK, c->dv8 * BLOCK);
    prefetch(in->k + block * c->dkp * BLOCK, c->dkp * BLOCK);
}

/* dS of one row tile and one block, with dP = dO V^T:
 *     gate P = 2^(scale2 (Q K^T - row_max)) inv_sum gate,
 *     dS = scale gate P (dP - dgate),   dgate = <dO,o> = sum_s P_s dP_s;
 * 0 if the key is not visible, whatever lies there. P is kept in s_p, 4 KiB of this warp, each
 * lane's part apart, because registers are scarce. */
static __device__ __forceinline__ void compute_ds(const dims *c, acc_16x64 *ds, const float *s_q,
                                                  const float *s_dout, const float *kt,
                                                  const float *vt, const float4 *terms,
                                                  uint64_t mask, float *s_p) {
    const unsigned visible = (unsigned)(mask >> lane_col()) & ((1u << LANE_COLS) - 1);
    s_p += (int)threadIdx.x % WARP_SIZE * LANE_COLS;
    zero_acc_16x64(ds);
    warp_matmul<1, PREFETCH_DEPTH_GLOBAL>(ds, s_q, TILE_ROWS, kt + lane_col(), BLOCK, c->dk8);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float4 term = terms[lane_row() + i];
        const float gated_inv_sum = term.y * term.z;
        schedule_barrier();
        float p[LANE_COLS];
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            p[j] = visible >> j & 1 ? exp2f(c->scale2 * (ds->x[i][j] - term.x)) * gated_inv_sum : 0;
        store4(s_p + i * WARP_SIZE * LANE_COLS, p[0], p[1], p[2], p[3]);
    }
    zero_acc_16x64(ds);
    warp_matmul<1, PREFETCH_DEPTH_GLOBAL>(ds, s_dout, TILE_ROWS, vt + lane_col(), BLOCK, c->dv8);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float dgate = terms[lane_row() + i].w;
        const float4 p4 = load4(s_p + i * WARP_SIZE * LANE_COLS);
        schedule_barrier();
        const float p[LANE_COLS] = {p4.x, p4.y, p4.z, p4.w};
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            ds->x[i][j] = visible >> j & 1 ? c->scale * p[j] * (ds->x[i][j] - dgate) : 0;
    }
}

/* dq += dS K of one tile, over the keys in `mask` of one block. s_ds [64][16] belongs to the
 * warp. */
template <int N_TILES>
static __device__ __forceinline__ void backward_span(const grad_args *a, acc_16x64 *dq,
                                                     const float *s_q, const float *s_dout,
                                                     float *s_ds, const kv_blocks *in,
                                                     int64_t block, const float4 *terms,
                                                     uint64_t mask) {
    const dims *c = &a->c;
    acc_16x64 ds;
    __syncwarp();
    compute_ds(c, &ds, s_q, s_dout, in->kt + block * c->dk8 * BLOCK,
               in->vt + block * c->dv8 * BLOCK, terms, mask, s_ds);
    __syncwarp();
    store_transposed(s_ds, &ds);
    __syncwarp();
    matmul_masked<N_TILES>(dq, s_ds, in->k + block * BLOCK * c->dkp + lane_col(), c->dkp, mask, 0,
                           BLOCK / LANE_COLS);
}

/* dq of `warps` neighbouring rows, one warp each: adds the part of selected keys to what
 * backward_range.cu stored. Grid (rows / warps, the last rows first; Hkv * GT), shared memory (dk8
 * + dv8 + 64) * 16 floats a warp: its Q^T, dO^T and dS^T. Keys and values are read from global
 * memory, each block by one warp. */
template <int N_TILES>
static __global__ void __launch_bounds__((N_TILES > 2 ? DQ_WARPS * 2 / 3 : DQ_WARPS) * WARP_SIZE, 1)
    dq_slc_kernel(const grad_args a, int warps) {
    NSA_DYNAMIC_SHARED(float, s_all);
    const dims *c = &a.c;
    const int warp = (int)threadIdx.x / WARP_SIZE, h = (int)blockIdx.y / c->GT;
    const int64_t r = (int64_t)(gridDim.x - 1 - blockIdx.x) * warps + warp;
    if (r >= a.R)
        return;
    const int64_t tile = r * c->Hkv * c->GT + blockIdx.y, tiles = a.R * c->Hkv * c->GT;
    const kv_blocks *in = &a.in[SLC];
    const int64_t first = h * in->stride + a.seqs[a.row_seq[r]].first[SLC];
    const float4 *terms = a.terms + (SLC * tiles + tile) * TILE_ROWS;
    const int32_t *idx = a.block_idx + (r * c->Hkv + h) * c->n;
    const int t = a.row_t[r];
    float *s_q = s_all + warp * (c->dk8 + c->dv8 + BLOCK) * TILE_ROWS;
    float *s_dout = s_q + c->dk8 * TILE_ROWS, *s_ds = s_dout + c->dv8 * TILE_ROWS;
    acc_16x64 dq[N_TILES];
#pragma unroll
    for (int s = 0; s < N_TILES; s++)
        zero_acc_16x64(&dq[s]);
    for (int i = (int)threadIdx.x % WARP_SIZE * 4; i < c->dk8 * TILE_ROWS; i += WARP_SIZE * 4)
        *(float4 *)(s_q + i) = load4(a.q_t + tile * c->dk8 * TILE_ROWS + i);
    for (int i = (int)threadIdx.x % WARP_SIZE * 4; i < c->dv8 * TILE_ROWS; i += WARP_SIZE * 4)
        *(float4 *)(s_dout + i) = load4(a.dout_t + tile * c->dv8 * TILE_ROWS + i);
    __syncwarp();
    block_iter iter = {0, 0};
    int block, next = 0;
    uint64_t mask, next_mask = next_block(c, idx, t, &iter, &next);
#pragma unroll 1
    while (next_mask) {
        block = next;
        mask = next_mask;
        next_mask = next_block(c, idx, t, &iter, &next);
        if (next_mask)
            prefetch_block(c, in, first + next);
        backward_span<N_TILES>(&a, dq, s_q + lane_row(), s_dout + lane_row(), s_ds, in,
                               first + block, terms, mask);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const int g = (int)blockIdx.y % c->GT * TILE_ROWS + lane_row() + i;
        real *to = a.dq + (r * c->Hq + h * c->G + g) * c->dkp + lane_col();
#pragma unroll
        for (int s = 0; s < N_TILES; s++) {
            const float *x = dq[s].x[i];
            if (g < c->G) {
                const float4 y = load4(to + s * TILE_COLS);
                store4(to + s * TILE_COLS, y.x + x[0], y.y + x[1], y.z + x[2], y.w + x[3]);
            }
        }
    }
}

/* ----------------------------------------------------------------- host */

static size_t warp_bytes(const dims *c) {
    return (size_t)(c->dk8 + c->dv8 + BLOCK) * TILE_ROWS * sizeof(float);
}

template <int N_TILES>
static nsa_status launch_queries(stage *st, const grad_args *args, int warps) {
    const dims *c = &args->c;
    const dim3 grid((unsigned)((args->R + warps - 1) / warps), (unsigned)(c->Hkv * c->GT));
    const size_t bytes = (size_t)warps * warp_bytes(c);
    TRY(nsa_allow_shared(dq_slc_kernel<N_TILES>));
    NSA_LAUNCH((dq_slc_kernel<N_TILES>), grid, warps * WARP_SIZE, bytes, st->stream, *args, warps);
    NSA_LAUNCHED("dq_slc");
    return NSA_OK;
}

/* Rows of a CUDA block: as many as max_shared bytes of shared memory hold. */
nsa_status open_queries(scratch *s, const dims *c, size_t max_shared) {
    s->dq_warps = c->dkp / TILE_COLS > 2 ? DQ_WARPS * 2 / 3 : (int)DQ_WARPS;
    while (s->dq_warps > 1 && (size_t)s->dq_warps * warp_bytes(c) > max_shared)
        s->dq_warps--;
    return NSA_OK;
}

/* dgate and the terms of all rows. */
nsa_status backward_gate(stage *st, const grad_args *args) {
    const scratch *s = (const scratch *)st->scratch;
    const int64_t tiles = args->R * args->c.Hkv * args->c.GT;
    const attend_args f = make_attend_args(st);
    NSA_LAUNCH(gate_backward, (unsigned)((tiles + 7) / 8), 8 * WARP_SIZE, 0, st->stream, *args, f,
               s->terms, st->dgate);
    NSA_LAUNCHED("gate_backward");
    return NSA_OK;
}

/* Add the selected keys' part to dq of all rows. */
nsa_status backward_queries(stage *st, const grad_args *args) {
    const scratch *s = (const scratch *)st->scratch;
    switch (args->c.dkp / TILE_COLS) {
    case 1:
        return launch_queries<1>(st, args, s->dq_warps);
    case 2:
        return launch_queries<2>(st, args, s->dq_warps);
    case 3:
        return launch_queries<3>(st, args, s->dq_warps);
    default:
        return launch_queries<4>(st, args, s->dq_warps);
    }
}
