/** @file
 *  @brief Backward, seen from the keys: dk and dv of a block, from all rows that visit it. */
#include "backward.cuh"

/* The visit that a warp makes next: asked for early, for all of it comes from far. */
typedef struct visitor {
    int64_t tile; /* -1: none */
    int t, own;   /* the row's position; the block's number in its sequence */
    int entry;    /* selected: the lane's entry of the row's list, -1 if it has none */
} visitor;

/* Visit `at` of those of `block`, -1 for none; its rows of Q and dO are on their way afterwards. */
static __device__ __forceinline__ visitor ask_for(const grad_args *a, const visit_args *v,
                                                  int64_t block, int64_t at) {
    const dims *c = &a->c;
    const int lane = (int)threadIdx.x % WARP;
    visitor next = {-1, 0, 0, -1};
    if (at < 0)
        return next;
    int64_t r = v->start[block] + at / c->GT;
    if (v->list)
        r = v->list[r];
    const int64_t pair = r * c->Hkv + block / v->stride, tile = pair * c->GT + at % c->GT;
    next.tile = tile;
    next.t = a->row_t[r];
    next.own = (int)(block % v->stride - a->seqs[a->row_seq[r]].first[v->branch]);
    if (v->branch == SLC && lane < c->n)
        next.entry = a->block_idx[pair * c->n + lane];
    fetch_soon(a->q_t + tile * c->dk8 * ROWS, c->dk8 * ROWS);
    fetch_soon(a->dout_t + tile * c->dv8 * ROWS, c->dv8 * ROWS);
    fetch_soon(a->q_n + tile * ROWS * c->dkp, ROWS * c->dkp);
    fetch_soon(a->dout_n + tile * ROWS * c->dvp, ROWS * c->dvp);
    return next;
}

/* The keys of the block that the visitor sees. Selected: its list's; the warp's lanes look through
 * the list together. */
static __device__ uint64_t visitor_bits(const grad_args *a, const visit_args *v,
                                        const visitor *who) {
    const dims *c = &a->c;
    if (v->branch != SLC) {
        const key_range seen = seen_range(c, v->branch, who->t);
        return key_bits(seen.lo, seen.hi, who->own * BLOCK);
    }
    uint64_t mask = 0;
    int j = who->entry;
    for (int i = (int)threadIdx.x % WARP; j >= 0;) {
        const key_range seen = seen_block(c, j, who->t);
        mask |= key_bits(seen.lo, seen.hi, who->own * BLOCK);
        i += WARP;
        j = i < c->n ? a->block_idx[who->tile / c->GT * c->n + i] : -1;
    }
    __syncwarp();
    for (int other = 1; other < WARP; other *= 2)
        mask |= __shfl_xor_sync(0xffffffffu, (unsigned long long)mask, other);
    return mask;
}

/* acc [16 keys][64 * STRIPS] += sum over the rows of `tiles` tiles  X [row][key] Y [row][column].
 * s_x: the lane's address in row 0 of X [rows][64]; y + s_tile[i]: in row 0 of tile i of Y. */
template <int STRIPS>
static __device__ __forceinline__ void add_rows(piece *acc, const float *s_x, const float *y,
                                                const int64_t *s_tile, int ldy, int tiles) {
    const int groups = tiles * (ROWS / AHEAD);
    const float *b = y + s_tile[0] * ROWS * ldy;
    float4 r_b[AHEAD][STRIPS];
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
#pragma unroll
        for (int s = 0; s < STRIPS; s++)
            r_b[u][s] = load4(b + u * ldy + s * STRIP);
    }
#pragma unroll 1
    for (int i = 1; i <= groups; i++) {
        const bool more = i < groups;
        b += AHEAD * ldy;
        if (more && i % (ROWS / AHEAD) == 0)
            b = y + s_tile[i / (ROWS / AHEAD)] * ROWS * ldy;
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const float4 lo = load4(s_x + u * BLOCK), hi = load4(s_x + u * BLOCK + 4);
#pragma unroll
            for (int s = 0; s < STRIPS; s++) {
                outer_product(&acc[s], lo, hi, r_b[u][s]);
                if (more)
                    r_b[u][s] = load4(b + u * ldy + s * STRIP);
            }
        }
        s_x += AHEAD * BLOCK;
    }
}

/* The role of a warp has `strips` of the STRIPS accumulators that it has room for. */
template <int STRIPS>
static __device__ __forceinline__ void add_role(piece *acc, const float *s_x, const float *y,
                                                const int64_t *s_tile, int ldy, int tiles,
                                                int strips) {
    if (strips == 1)
        add_rows<1>(acc, s_x, y, s_tile, ldy, tiles);
    else if (STRIPS >= 2 && strips == 2)
        add_rows<STRIPS >= 2 ? 2 : 1>(acc, s_x, y, s_tile, ldy, tiles);
    else if (STRIPS >= 3 && strips == 3)
        add_rows<STRIPS >= 3 ? 3 : 1>(acc, s_x, y, s_tile, ldy, tiles);
    else
        add_rows<STRIPS>(acc, s_x, y, s_tile, ldy, tiles);
}

/* The last block whose units begin at or before `unit`. */
static __device__ int64_t block_of_unit(const visit_args *v, int64_t unit) {
    int64_t lo = 0, hi = v->blocks - 1;
    while (lo < hi) {
        const int64_t middle = (lo + hi + 1) / 2;
        if (v->first_unit[middle] <= unit)
            lo = middle;
        else
            hi = middle - 1;
    }
    return lo;
}

/* P and dS of one visit, to 16 rows of s_p and s_ds [rows][64]. */
template <int A_FAR>
static __device__ __forceinline__ void visit(const grad_args *a, const visit_args *v, int64_t block,
                                             const visitor *who, float *s_p, float *s_ds) {
    const dims *c = &a->c;
    const kv_blocks *in = &a->in[v->branch];
    const int64_t tiles = a->R * c->Hkv * c->GT;
    piece p, ds;
    differentiate<A_FAR, NEAR>(c, &p, &ds, a->q_t + who->tile * c->dk8 * ROWS + first_row(),
                               a->dout_t + who->tile * c->dv8 * ROWS + first_row(),
                               in->kt + block * c->dk8 * BLOCK, in->vt + block * c->dv8 * BLOCK,
                               a->terms + (v->branch * tiles + who->tile) * ROWS,
                               visitor_bits(a, v, who));
    s_p += first_row() * BLOCK + first_col();
    s_ds += first_row() * BLOCK + first_col();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float *p_i = p.at[i], *ds_i = ds.at[i];
        store4(s_p + i * BLOCK, p_i[0], p_i[1], p_i[2], p_i[3]);
        store4(s_ds + i * BLOCK, ds_i[0], ds_i[1], ds_i[2], ds_i[3]);
    }
}

/* One unit: up to `most` visits of one block of keys, `step` tiles at a time. First each warp makes
 * P and dS of one tile; then warps 0..3 add P^T dO to 16 keys of dv each, and warps 4..7 dS^T Q to
 * dk. Grid: as many units as there may be. Shared memory: P and dS [16 step][64]. */
template <int STRIPS>
static __global__ void __launch_bounds__(DKV_WARPS *WARP, 1)
    key_gradients(const grad_args a, const visit_args v, int step) {
    NSA_DYNAMIC_SHARED(float, s_p);
    __shared__ int64_t s_tile[DKV_WARPS];
    const dims *c = &a.c;
    const int warp = (int)threadIdx.x / WARP, keys = warp % KEY_GROUPS * ROWS;
    const bool values = warp < KEY_GROUPS;
    const int ld = values ? c->dvp : c->dkp, strips = ld / STRIP;
    float *s_ds = s_p + step * ROWS * BLOCK;
    const int64_t unit = blockIdx.x;
    if (unit >= v.first_unit[v.blocks])
        return;
    const int64_t block = block_of_unit(&v, unit);
    const int64_t begin = (unit - v.first_unit[block]) * v.most, visits = v.count[block];
    const int64_t end = (begin + v.most < visits ? begin + v.most : visits) * c->GT;
    int64_t at = begin * c->GT + warp; /* this warp's visit; those past `step` have none */
    visitor who = ask_for(&a, &v, block, warp < step && at < end ? at : -1);
    piece acc[STRIPS];
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
        zero_piece(&acc[s]);
#pragma unroll 1
    for (int64_t i = begin * c->GT; i < end; i += step) {
        __syncthreads(); /* the step before is done with P, dS and the tiles */
        if (who.tile >= 0) {
            if (threadIdx.x % WARP == 0)
                s_tile[warp] = who.tile;
            visit<(STRIPS > 2 ? NEAR : FAR)>(&a, &v, block, &who, s_p + warp * ROWS * BLOCK,
                                             s_ds + warp * ROWS * BLOCK);
        }
        at += step;
        who = ask_for(&a, &v, block, warp < step && at < end ? at : -1);
        __syncthreads();
        add_role<STRIPS>(acc, (values ? s_p : s_ds) + keys + first_row(),
                         (values ? a.dout_n : a.q_n) + first_col(), s_tile, ld,
                         end - i < step ? (int)(end - i) : step, strips);
    }
    real *to = v.partial + unit * BLOCK * (c->dvp + c->dkp) + (values ? 0 : BLOCK * c->dvp) +
               (keys + first_row()) * ld + first_col();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            const float *x = acc[s].at[i];
            if (s < strips)
                store4(to + i * ld + s * STRIP, x[0], x[1], x[2], x[3]);
        }
    }
}

/* dv and dk of a block: its units' sums, added in the units' order. Grid (blocks), 256 threads. */
static __global__ void __launch_bounds__(256) add_units(const grad_args a, const visit_args v) {
    const dims *c = &a.c;
    const int64_t block = blockIdx.x, size = BLOCK * (c->dvp + c->dkp);
    const kv_blocks *in = &a.in[v.branch];
    for (int i = (int)threadIdx.x; i < size; i += 256) {
        float sum = 0;
        for (int64_t unit = v.first_unit[block]; unit < v.first_unit[block + 1]; unit++)
            sum += v.partial[unit * size + i];
        if (i < BLOCK * c->dvp)
            in->dv[block * BLOCK * c->dvp + i] = sum;
        else
            in->dk[block * BLOCK * c->dkp + i - BLOCK * c->dvp] = sum;
    }
}

/* ----------------------------------------------------------------- host */

static size_t step_bytes(int tiles) {
    return (size_t)tiles * 2 * ROWS * BLOCK * sizeof(float);
}

/* As many tiles a step as `room` bytes of shared memory hold. */
nsa_status open_keys(scratch *s, size_t room) {
    s->dkv_tiles = DKV_WARPS;
    while (s->dkv_tiles > 1 && step_bytes(s->dkv_tiles) + 256 > room)
        s->dkv_tiles /= 2;
    return NSA_OK;
}

template <int STRIPS>
static nsa_status launch_keys(stage *st, const grad_args *args, const visit_args *v,
                              int64_t units) {
    const int step = ((const scratch *)st->scratch)->dkv_tiles;
    NSA_CUDA(cudaFuncSetAttribute(
        key_gradients<STRIPS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)step_bytes(step)));
    NSA_LAUNCH((key_gradients<STRIPS>), (unsigned)units, DKV_WARPS * WARP, step_bytes(step),
               st->stream, *args, *v, step);
    NSA_LAUNCHED("key_gradients");
    return NSA_OK;
}

/* dk and dv of one branch, from the visits that list_visits() found. */
nsa_status backward_keys(stage *st, const grad_args *args, const visit_args *v) {
    const dims *c = &args->c;
    const int64_t units = v->blocks + v->most_units;
    switch ((c->dkp > c->dvp ? c->dkp : c->dvp) / STRIP) {
    case 1:
        TRY(launch_keys<1>(st, args, v, units));
        break;
    case 2:
        TRY(launch_keys<2>(st, args, v, units));
        break;
    case 3:
        TRY(launch_keys<3>(st, args, v, units));
        break;
    default:
        TRY(launch_keys<4>(st, args, v, units));
    }
    NSA_LAUNCH(add_units, (unsigned)v->blocks, 256, 0, st->stream, *args, *v);
    NSA_LAUNCHED("add_units");
    return NSA_OK;
}
