/** @file
 *  @brief One row a slot against its caches. Keys are read once: compressed scores are kept, for
 * the choice of blocks needs their probabilities, and those the sum over all parts. */
#include "decode.cuh"
#include "attend.cuh"

/* What a CUDA block works on. */
typedef struct unit_of {
    int unit, row, head, g16; /* the row of the step, kv head, tile of heads */
    int64_t slot;
    int t;
} unit_of;

static __device__ __forceinline__ unit_of unit_at(const decode_args *a, int unit) {
    unit_of u;
    u.unit = unit;
    u.g16 = unit % a->c.GT;
    u.head = unit / a->c.GT % a->c.Hkv;
    u.row = unit / a->c.GT / a->c.Hkv;
    u.t = a->t[u.row];
    u.slot = a->slot[u.row];
    return u;
}

/* ------------------------------------------------------------- attend parts */

/* This warp's share, blocks warp, warp + warps, .. of a branch: `turn` of `turns`. */
template <int STRIPS>
static __device__ __forceinline__ void attend_share(attention<STRIPS> *x, const decode_args *a,
                                                    const unit_of *u, int branch, int turn,
                                                    int turns, const float *s_q, float *s_p) {
    const dims *c = &a->c;
    const kv_blocks *in = &a->in[branch];
    const int64_t first = u->head * in->stride + u->slot * a->first[branch];
    const real *g_kt = in->kt + first * c->dk8 * BLOCK, *g_v = in->v + first * BLOCK * c->dvp;
    const int64_t kt = (int64_t)c->dk8 * BLOCK, v = (int64_t)BLOCK * c->dvp;
    const int32_t *g_idx = a->block_idx + ((int64_t)u->row * c->Hkv + u->head) * c->n;
    const int end = branch == CMP ? visible(c, u->t) : u->t + 1;
    const int lo = branch == WIN ? max(u->t - c->w + 1, 0) : 0;
    float *g_scores = branch == CMP ? a->scores + u->unit * a->first[CMP] * ROWS * BLOCK : NULL;
    walk w = {0, 0};
    uint64_t mask;
    int b = lo / BLOCK + turn, i = 0;
    while (branch == SLC ? next_visit(&w, g_idx, c, u->t, &b, &mask) : b * BLOCK < end) {
        if (branch != SLC)
            mask = bits(lo - b * BLOCK, end - b * BLOCK);
        if (branch != SLC || i++ % turns == turn)
            own_block<STRIPS>(x, c, g_kt + b * kt, g_v + b * v, s_q, s_p, mask,
                              g_scores ? g_scores + (int64_t)b * ROWS * BLOCK : NULL);
        b += branch == SLC ? 0 : turns;
    }
}

/* Put the warps' attentions together and write them as one part. s_o [16][dvp], s_stats
 * [warps][16]. */
template <int STRIPS>
static __device__ __forceinline__ void write_part(const attention<STRIPS> *x, const dims *c,
                                                  float *s_o, row_stats *s_stats, real *g_o,
                                                  row_stats *g_stats) {
    const int warps = (int)blockDim.x / WARP, dvp = c->dvp;
    float factor[LANE_ROWS];
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float sum = row_sum(x->sum[i]);
        if (this_lane() < 2)
            s_stats[this_warp() * ROWS + first_row() + i] = row_stats{x->most[i], sum};
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float most = -INFINITY, sum = 0;
        for (int w = 0; w < warps; w++)
            most = fmaxf(most, s_stats[w * ROWS + first_row() + i].most);
        most = most == -INFINITY ? 0 : most;
        for (int w = 0; w < warps; w++) {
            const row_stats r = s_stats[w * ROWS + first_row() + i];
            sum += r.over * exp2f(c->scale2 * (r.most - most));
        }
        factor[i] = exp2f(c->scale2 * (x->most[i] - most));
        if (threadIdx.x < 2)
            g_stats[first_row() + i] = row_stats{most, sum};
    }
    for (int w = 0; w < warps; w++) { /* one after the other: always the same sum */
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
            for (int s = 0; s < STRIPS && w == this_warp(); s++) {
                float *at = s_o + (first_row() + i) * dvp + s * STRIP + first_col();
                const float4 old = w ? load4(at) : make_float4(0, 0, 0, 0);
                const float *o = x->o[s].at[i], f = factor[i];
                store4(at, old.x + o[0] * f, old.y + o[1] * f, old.z + o[2] * f, old.w + o[3] * f);
            }
        }
        __syncthreads();
    }
    for (int i = 4 * (int)threadIdx.x; i < ROWS * dvp; i += 4 * (int)blockDim.x)
        *(float4 *)(g_o + i) = load4(s_o + i);
}

/* Grid: `count` parts from `from` on of every unit. Block: PART_WARPS warps, with blocks of keys
 * of their own. Shared: Q^T [dk8][16], P^T [64][16] of each warp, the statistics of each warp,
 * outputs [16][dvp]. */
template <int STRIPS>
static __global__ void __launch_bounds__(PART_WARPS *WARP, STRIPS < 3 ? 3 : 2)
    decode_parts_kernel(decode_args a, int from, int count) {
    NSA_DYNAMIC_SHARED(float, s_q);
    const dims *c = &a.c;
    float *s_p = s_q + c->dk8 * ROWS + this_warp() * BLOCK * ROWS;
    row_stats *s_stats = (row_stats *)(s_q + c->dk8 * ROWS + PART_WARPS * BLOCK * ROWS);
    float *s_o = (float *)(s_stats + PART_WARPS * ROWS);
    const unit_of u = unit_at(&a, (int)blockIdx.x / count);
    const int part = from + (int)blockIdx.x % count;
    const int branch = part >= first_part(&a, SLC) ? SLC : part >= first_part(&a, WIN) ? WIN : CMP;
    const int64_t place = (int64_t)u.unit * all_parts(&a) + part;
    attention<STRIPS> x;
    if (u.t < 0)
        return;
    for (int i = 4 * (int)threadIdx.x; i < c->dk8 * ROWS; i += 4 * PART_WARPS * WARP)
        *(float4 *)(s_q + i) = load4(a.q_t + (int64_t)u.unit * c->dk8 * ROWS + i);
    __syncthreads();
    begin(&x);
    attend_share<STRIPS>(&x, &a, &u, branch,
                         (part - first_part(&a, branch)) * PART_WARPS + this_warp(),
                         a.parts[branch] * PART_WARPS, s_q, s_p);
    write_part<STRIPS>(&x, c, s_o, s_stats, a.part_o + place * ROWS * c->dvp,
                       a.part_stats + place * ROWS);
}

/* ------------------------------------------------------------------ combine */

/* One unit's parts into branch outputs, and those by their gates into out (Eq. 5).
 * Grid: units. Block: 128 threads, four columns of a head each. */
static __global__ void decode_combine_kernel(decode_args a) {
    const dims *c = &a.c;
    const unit_of u = unit_at(&a, (int)blockIdx.x);
    const int heads = min(ROWS, c->G - u.g16 * ROWS), four = c->dvp / 4;
    if (u.t < 0)
        return;
    for (int i = (int)threadIdx.x; i < heads * four; i += (int)blockDim.x) {
        const int row = i / four, col = 4 * (i % four);
        const int64_t head = (int64_t)u.row * c->Hq + u.head * c->G + u.g16 * ROWS + row;
        float4 out = make_float4(0, 0, 0, 0);
        for (int x = 0; x < BRANCHES; x++) {
            const row_stats r = stats_of(&a, u.unit, x, row);
            const float g = a.gate[head * BRANCHES + x];
            const int64_t first = (int64_t)u.unit * all_parts(&a) + first_part(&a, x);
            float4 o = make_float4(0, 0, 0, 0);
            for (int part = 0; part < a.parts[x]; part++) {
                const row_stats of = a.part_stats[(first + part) * ROWS + row];
                if (of.over == 0)
                    continue;
                const float f = exp2f(c->scale2 * (of.most - r.most)) * r.over;
                const float4 p = load4(a.part_o + ((first + part) * ROWS + row) * c->dvp + col);
                o = make_float4(o.x + f * p.x, o.y + f * p.y, o.z + f * p.z, o.w + f * p.w);
            }
            if (a.out_x[x])
                store4(a.out_x[x] + head * c->dvp + col, o.x, o.y, o.z, o.w);
            out = make_float4(out.x + g * o.x, out.y + g * o.y, out.z + g * o.z, out.w + g * o.w);
        }
        store4(a.out + head * c->dvp + col, out.x, out.y, out.z, out.w);
    }
}

/* ----------------------------------------------------------------- launches */

static size_t parts_bytes(const dims *c) {
    return (size_t)(c->dk8 * ROWS + PART_WARPS * (BLOCK * ROWS + 2 * ROWS) + ROWS * c->dvp) *
           sizeof(float);
}

nsa_status open_decode_attend(stage *st, const decode_args *a) {
    (void)st;
    TRY(open_choose());
    switch (a->c.dvp / STRIP) {
    case 1:
        return nsa_allow_shared(decode_parts_kernel<1>);
    case 2:
        return nsa_allow_shared(decode_parts_kernel<2>);
    case 3:
        return nsa_allow_shared(decode_parts_kernel<3>);
    default:
        return nsa_allow_shared(decode_parts_kernel<4>);
    }
}

nsa_status decode_parts(stage *st, const decode_args *a, int from, int to) {
    const unsigned grid = (unsigned)(a->units * (to - from)), block = PART_WARPS * WARP;
    const size_t bytes = parts_bytes(&a->c);
    switch (a->c.dvp / STRIP) {
    case 1:
        NSA_LAUNCH(decode_parts_kernel<1>, grid, block, bytes, st->stream, *a, from, to - from);
        break;
    case 2:
        NSA_LAUNCH(decode_parts_kernel<2>, grid, block, bytes, st->stream, *a, from, to - from);
        break;
    case 3:
        NSA_LAUNCH(decode_parts_kernel<3>, grid, block, bytes, st->stream, *a, from, to - from);
        break;
    default:
        NSA_LAUNCH(decode_parts_kernel<4>, grid, block, bytes, st->stream, *a, from, to - from);
    }
    NSA_LAUNCHED("decode_parts");
    return NSA_OK;
}

nsa_status decode_combine(stage *st, const decode_args *a) {
    NSA_LAUNCH(decode_combine_kernel, (unsigned)a->units, 128, 0, st->stream, *a);
    NSA_LAUNCHED("decode_combine");
    return NSA_OK;
}
