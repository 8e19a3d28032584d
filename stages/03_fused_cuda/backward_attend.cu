/** @file
 *  @brief Backward, seen from the queries: dgate, what the attention kernels need of a row, and
 *  dq of selected keys. backward_keys.cu is the same attention seen from the keys. */
#include "backward.cuh"

/* dgate = <dout,o> of each branch, and the row's terms for the other kernels.
 * Grid (row tiles / 8), 8 warps: a warp has one tile, its heads one after the other. */
static __global__ void __launch_bounds__(8 * WARP)
    gate_backward(const grad_args a, const rows_args f, float4 *terms, real *dgate) {
    const dims *c = &a.c;
    const int64_t tiles = a.R * c->Hkv * c->GT;
    const int64_t tile = (int64_t)blockIdx.x * 8 + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP, g0 = (int)(tile % c->GT) * ROWS;
    if (tile >= tiles)
        return;
    for (int i = 0; i < ROWS; i++) {
        const int64_t head = tile / c->GT * c->G + g0 + i; /* (r*Hkv + h)*G + g = r*Hq + ... */
        const float *dout = a.dout_n + (tile * ROWS + i) * c->dvp;
        for (int x = 0; x < BRANCHES; x++) {
            float4 term = make_float4(0, 0, 0, 0); /* a row of padding gives P = dS = 0 */
            if (g0 + i < c->G) {
                const row_stats stats = f.stats[head * BRANCHES + x];
                const float gate = f.gate[head * BRANCHES + x];
                float sum = 0;
                for (int col = lane; col < c->dv; col += WARP)
                    sum += dout[col] * f.out_x[x][head * c->dvp + col];
                for (int other = 1; other < WARP; other *= 2)
                    sum += __shfl_xor_sync(0xffffffffu, sum, other);
                term = make_float4(stats.most, stats.over, gate, sum);
                if (lane == 0)
                    dgate[head * BRANCHES + x] = sum;
            }
            if (lane == 0)
                terms[(x * tiles + tile) * ROWS + i] = term;
        }
    }
}

/* Where one row's list of selected blocks is being read. */
typedef struct walk {
    int entry, own; /* next entry, next block at the least */
} walk;

/* The next block of 64 that the row's list touches, with the keys of all its
 * entries in it; 0 when there is none left. */
static __device__ uint64_t next_selected(const dims *c, const int32_t *idx, int t, walk *w,
                                         int *block) {
    uint64_t mask = 0;
    for (; w->entry < c->n && idx[w->entry] >= 0; w->entry++) {
        const key_range seen = seen_block(c, idx[w->entry], t);
        const int from = seen.lo / BLOCK > w->own ? seen.lo / BLOCK : w->own;
        if (mask && from > *block)
            break;
        *block = from;
        mask |= key_bits(seen.lo, seen.hi, from * BLOCK);
        if (seen.hi > (from + 1) * BLOCK)
            break; /* the entry goes on in the next block */
    }
    w->own = *block + 1;
    return mask;
}

/* Ask for the keys and values of a block that is visited next. */
static __device__ __forceinline__ void fetch_block(const dims *c, const kv_blocks *in,
                                                   int64_t block) {
    fetch_soon(in->kt + block * c->dk8 * BLOCK, c->dk8 * BLOCK);
    fetch_soon(in->vt + block * c->dv8 * BLOCK, c->dv8 * BLOCK);
    fetch_soon(in->k + block * c->dkp * BLOCK, c->dkp * BLOCK);
}

/* One row tile against one block, with dP = dO V^T:
 *     gate P = 2^(scale2 (Q K^T - most)) over gate,
 *     dS = scale gate P (dP - dgate),   dgate = <dO,o> = sum_s P_s dP_s;
 * 0 where a key is not seen, whatever lies there. P waits in s_p, 4 KiB of the warp's own, each
 * lane's pieces in its own place: registers are scarce. */
static __device__ __forceinline__ void differentiate(const dims *c, piece *ds, const float *s_q,
                                                     const float *s_dout, const float *kt,
                                                     const float *vt, const float4 *terms,
                                                     uint64_t mask, float *s_p) {
    const unsigned seen = (unsigned)(mask >> first_col()) & ((1u << LANE_COLS) - 1);
    s_p += (int)threadIdx.x % WARP * LANE_COLS;
    zero_piece(ds);
    product<1, AFAR>(ds, s_q, ROWS, kt + first_col(), BLOCK, c->dk8);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float4 term = terms[first_row() + i];
        const float over = term.y * term.z;
        keep_order();
        float p[LANE_COLS];
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            p[j] = seen >> j & 1 ? exp2f(c->scale2 * (ds->at[i][j] - term.x)) * over : 0;
        store4(s_p + i * WARP * LANE_COLS, p[0], p[1], p[2], p[3]);
    }
    zero_piece(ds);
    product<1, AFAR>(ds, s_dout, ROWS, vt + first_col(), BLOCK, c->dv8);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float dgate = terms[first_row() + i].w;
        const float4 p4 = load4(s_p + i * WARP * LANE_COLS);
        keep_order();
        const float p[LANE_COLS] = {p4.x, p4.y, p4.z, p4.w};
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            ds->at[i][j] = seen >> j & 1 ? c->scale * p[j] * (ds->at[i][j] - dgate) : 0;
    }
}

/* dq of one tile over the keys `mask` of one block: dq += dS K. s_ds [64][16] is the warp's own. */
template <int STRIPS>
static __device__ __forceinline__ void backward_span(const grad_args *a, piece *dq,
                                                     const float *s_q, const float *s_dout,
                                                     float *s_ds, const kv_blocks *in,
                                                     int64_t block, const float4 *terms,
                                                     uint64_t mask) {
    const dims *c = &a->c;
    piece ds;
    __syncwarp();
    differentiate(c, &ds, s_q, s_dout, in->kt + block * c->dk8 * BLOCK,
                  in->vt + block * c->dv8 * BLOCK, terms, mask, s_ds);
    __syncwarp();
    store_transposed(s_ds, &ds);
    __syncwarp();
    add_keys<STRIPS>(dq, s_ds, in->k + block * BLOCK * c->dkp + first_col(), c->dkp, mask, 0,
                     BLOCK / LANE_COLS);
}

/* dq of `warps` neighbouring rows, a warp each: the selected keys' part is added to what
 * backward_range.cu left there. Grid (rows / warps, the last rows first; Hkv * GT), shared memory
 * (dk8 + dv8 + 64) * 16 floats a warp: the warp's Q^T, dO^T and dS^T. Keys and values are read
 * where they lie: each block by one warp. */
template <int STRIPS>
static __global__ void __launch_bounds__((STRIPS > 2 ? DQ_WARPS * 2 / 3 : DQ_WARPS) * WARP, 1)
    query_gradients(const grad_args a, int warps) {
    NSA_DYNAMIC_SHARED(float, s_all);
    const dims *c = &a.c;
    const int warp = (int)threadIdx.x / WARP, h = (int)blockIdx.y / c->GT;
    const int64_t r = (int64_t)(gridDim.x - 1 - blockIdx.x) * warps + warp;
    if (r >= a.R)
        return;
    const int64_t tile = r * c->Hkv * c->GT + blockIdx.y, tiles = a.R * c->Hkv * c->GT;
    const kv_blocks *in = &a.in[SLC];
    const int64_t first = h * in->stride + a.seqs[a.row_seq[r]].first[SLC];
    const float4 *terms = a.terms + (SLC * tiles + tile) * ROWS;
    const int32_t *idx = a.block_idx + (r * c->Hkv + h) * c->n;
    const int t = a.row_t[r];
    float *s_q = s_all + warp * (c->dk8 + c->dv8 + BLOCK) * ROWS;
    float *s_dout = s_q + c->dk8 * ROWS, *s_ds = s_dout + c->dv8 * ROWS;
    piece dq[STRIPS];
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
        zero_piece(&dq[s]);
    for (int i = (int)threadIdx.x % WARP * 4; i < c->dk8 * ROWS; i += WARP * 4)
        *(float4 *)(s_q + i) = load4(a.q_t + tile * c->dk8 * ROWS + i);
    for (int i = (int)threadIdx.x % WARP * 4; i < c->dv8 * ROWS; i += WARP * 4)
        *(float4 *)(s_dout + i) = load4(a.dout_t + tile * c->dv8 * ROWS + i);
    __syncwarp();
    walk w = {0, 0};
    int block, next = 0;
    uint64_t mask, next_mask = next_selected(c, idx, t, &w, &next);
#pragma unroll 1
    while (next_mask) {
        block = next;
        mask = next_mask;
        next_mask = next_selected(c, idx, t, &w, &next);
        if (next_mask)
            fetch_block(c, in, first + next);
        backward_span<STRIPS>(&a, dq, s_q + first_row(), s_dout + first_row(), s_ds, in,
                              first + block, terms, mask);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const int g = (int)blockIdx.y % c->GT * ROWS + first_row() + i;
        real *at = a.dq + (r * c->Hq + h * c->G + g) * c->dkp + first_col();
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            const float *x = dq[s].at[i];
            if (g < c->G) {
                const float4 y = load4(at + s * STRIP);
                store4(at + s * STRIP, y.x + x[0], y.y + x[1], y.z + x[2], y.w + x[3]);
            }
        }
    }
}

/* ----------------------------------------------------------------- host */

static size_t warp_bytes(const dims *c) {
    return (size_t)(c->dk8 + c->dv8 + BLOCK) * ROWS * sizeof(float);
}

template <int STRIPS>
static nsa_status launch_queries(stage *st, const grad_args *args, int warps) {
    const dims *c = &args->c;
    const dim3 grid((unsigned)((args->R + warps - 1) / warps), (unsigned)(c->Hkv * c->GT));
    const size_t bytes = (size_t)warps * warp_bytes(c);
    TRY(nsa_allow_shared(query_gradients<STRIPS>));
    NSA_LAUNCH((query_gradients<STRIPS>), grid, warps * WARP, bytes, st->stream, *args, warps);
    NSA_LAUNCHED("query_gradients");
    return NSA_OK;
}

/* As many rows a CUDA block as `room` bytes of shared memory hold. */
nsa_status open_queries(scratch *s, const dims *c, size_t room) {
    s->dq_warps = c->dkp / STRIP > 2 ? DQ_WARPS * 2 / 3 : (int)DQ_WARPS;
    while (s->dq_warps > 1 && (size_t)s->dq_warps * warp_bytes(c) > room)
        s->dq_warps--;
    return NSA_OK;
}

/* dgate of all rows, and their terms. */
nsa_status backward_gate(stage *st, const grad_args *args) {
    const scratch *s = (const scratch *)st->scratch;
    const int64_t tiles = args->R * args->c.Hkv * args->c.GT;
    const rows_args f = arguments(st);
    NSA_LAUNCH(gate_backward, (unsigned)((tiles + 7) / 8), 8 * WARP, 0, st->stream, *args, f,
               s->terms, st->dgate);
    NSA_LAUNCHED("gate_backward");
    return NSA_OK;
}

/* dq of all rows, the rest of it: selected keys. */
nsa_status backward_queries(stage *st, const grad_args *args) {
    const scratch *s = (const scratch *)st->scratch;
    switch (args->c.dkp / STRIP) {
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
