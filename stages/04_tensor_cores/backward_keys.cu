/** @file
 *  @brief Backward by keys: dk and dv of a block, from all rows that see it. Nobody else adds to
 *  them: no atomics, and the same bits in every run. */
#include "backward.cuh"

/* Parts of the columns of dk and dv: half of them are registers enough for wide heads. */
#define DKV_PARTS(DK) ((DK) <= 128 ? 1 : 2)

/* The tokens of selected block j that position t sees, those of memory block `block` alone. */
static __device__ __forceinline__ uint64_t selected_mask(const dims *c, int j, int t, int block) {
    const int first = j * c->lb, end = min(first + c->lb, t + 1);
    return range_mask(first - block * BLOCK, end - block * BLOCK);
}

/* The keys that row r at position t sees in block b of its sequence, of kv head h. A row of the
 * selected branch's list has selected a block there; unless such blocks are smaller, all of it. */
static __device__ __forceinline__ uint64_t visible_keys(const grad_args *a, int branch, int64_t h,
                                                        int b, int64_t r, int t) {
    const dims *c = &a->f.c;
    if (t < 0 || branch != SLC)
        return visible_mask(c, branch, t, b);
    if (c->lb % BLOCK == 0)
        return range_mask(0, t + 1 - b * BLOCK);
    const int32_t *idx = a->f.block_idx + (r * c->Hkv + h) * c->n;
    uint64_t mask = 0;
    for (int i = 0; i < c->n && idx[i] >= 0; i++)
        mask |= selected_mask(c, idx[i], t, b);
    return mask;
}

/* A step of row tiles in shared memory, up to DKV_WARPS of them. */
typedef struct dkv_step {
    bf16 *q, *dout;   /* [step][16][DK], [step][16][DV] */
    row_terms *terms; /* [step][16] */
} dkv_step;

template <int DK, int DV> struct dkv_smem {
    enum { STEP_TILE = TILE_ROWS * ((DK + DV) * (int)sizeof(bf16) + (int)sizeof(row_terms)) };
    bf16 *k, *v; /* [64][DK], [64][DV] */
    unsigned char *steps;

    static size_t bytes(int step) {
        return BLOCK * (DK + DV) * sizeof(bf16) + (size_t)(2 * step * STEP_TILE);
    }
};

template <int DK, int DV>
static __device__ __forceinline__ dkv_smem<DK, DV> dkv_smem_of(bf16 *base) {
    dkv_smem<DK, DV> m;
    m.k = base;
    m.v = m.k + BLOCK * DK;
    m.steps = (unsigned char *)(m.v + BLOCK * DV);
    return m;
}

/* Step number `which`, 0 or 1. */
template <int DK, int DV>
static __device__ __forceinline__ dkv_step dkv_step_of(const dkv_smem<DK, DV> &m, int which,
                                                       int step) {
    dkv_step x;
    x.q = (bf16 *)(m.steps + which * step * m.STEP_TILE);
    x.dout = x.q + step * TILE_ROWS * DK;
    x.terms = (row_terms *)(x.dout + step * TILE_ROWS * DV);
    return x;
}

/* Start copying a row tile to place `at` of a step, by one warp. */
template <int DK, int DV>
static __device__ __forceinline__ void load_row_tile(const grad_args *a, int branch, int64_t tile,
                                                     const dkv_step &x, int at) {
    copy_rows_async<DK>(x.q + at * TILE_ROWS * DK, a->f.q + tile * TILE_ROWS * DK, TILE_ROWS,
                        lane_id(), WARP_SIZE);
    copy_rows_async<DV>(x.dout + at * TILE_ROWS * DV, a->dout + tile * TILE_ROWS * DV, TILE_ROWS,
                        lane_id(), WARP_SIZE);
    if (lane_id() < TILE_ROWS)
        nsa_cp_async_16(x.terms + at * TILE_ROWS + lane_id(),
                        a->terms + (branch * a->row_tiles + tile) * TILE_ROWS + lane_id());
}

/* Fragments of 16 rows of D elements, kept in registers or, for wide heads, loaded when they are
 * needed. */
template <int D, bool KEPT> struct row_frags {
    frag_a x[KEPT ? D / TILE_K : 1];
    bf16 *s_rows;

    __device__ __forceinline__ void load(bf16 *s_from) {
        s_rows = s_from;
#pragma unroll
        for (int k = 0; KEPT && k < D / TILE_K; k++)
            x[k] = load_a<D>(s_from, k * TILE_K);
    }

    __device__ __forceinline__ frag_a at(int k) const {
        return KEPT ? x[KEPT ? k : 0] : load_a<D>(s_rows, k * TILE_K);
    }
};

/* acc [16 keys, 16 rows] = A B^T, B = s_b [16][D]. */
template <int D, bool KEPT>
static __device__ __forceinline__ void key_scores(acc_tiles<2> *acc, const row_frags<D, KEPT> &a,
                                                  bf16 *s_b) {
    zero_acc(acc);
#pragma unroll
    for (int k = 0; k < D / TILE_K; k++) {
        const frag_a keys = a.at(k);
        frag_b b[2];
        load_b<D>(b, s_b, k * TILE_K);
        mma(acc->x[0], keys, b[0]);
        mma(acc->x[1], keys, b[1]);
    }
}

/* acc [16 keys, 8 N] += P^T B, B = s_b [16][D], 8 N of its columns from `col` on. */
template <int D, int N>
static __device__ __forceinline__ void add_rows(acc_tiles<N> *acc, const frag_a &p, bf16 *s_b,
                                                int col) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        frag_b b[2];
        load_b_trans<D>(b, s_b, col + n * TILE_N);
        mma(acc->x[n], p, b[0]);
        mma(acc->x[n + 1], p, b[1]);
    }
}

/* Row tile number i of a unit, which begins at `start` of the list: its row; -1 if there is none. */
static __device__ __forceinline__ int64_t row_of_unit(const inverse_list *inv, int64_t start,
                                                      int64_t i, int64_t tiles, int GT) {
    const int64_t at = start + i / GT;
    return i >= tiles ? -1 : inv->list ? inv->list[at] : at;
}

/* dk and dv of the warp's 16 keys from one row tile, whose visible keys are `mask`. */
template <int DK, int DV, int NK, int NV>
static __device__ __forceinline__ void
add_row_tile(acc_tiles<NK> *dk, acc_tiles<NV> *dv,
             const row_frags<DK, NK == DK / TILE_N> &k, const row_frags<DV, NK == DK / TILE_N> &v,
             const dkv_step &x, int tile, float scale2, unsigned mask) {
    bf16 *s_q = x.q + tile * TILE_ROWS * DK, *s_dout = x.dout + tile * TILE_ROWS * DV;
    const row_terms *terms = x.terms + tile * TILE_ROWS + lane_col();
    acc_tiles<2> s, dp;
    key_scores(&s, k, s_q);
    key_scores(&dp, v, s_dout);
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            softmax_backward(scale2, &s.x[n][i], &dp.x[n][i], terms[n * TILE_N + i % 2],
                             mask >> (lane_row() + i / 2 * 8) & 1);
    }
    add_rows<DV>(dv, a_of_acc(s.x[0], s.x[1]), s_dout, (int)blockIdx.z * NV * TILE_N);
    add_rows<DK>(dk, a_of_acc(dp.x[0], dp.x[1]), s_q, (int)blockIdx.z * NK * TILE_N);
}

/* One work unit: up to unit_rows rows that see one block of keys, `step` row tiles at a time. Keys
 * are the rows of matrix tiles here, and each warp has 16 of them to the end:
 *
 *     S^T [16 keys,16 rows] = K Q^T    dP^T = V dO^T    ->    P^T and dS^T, which are A already
 *     dV [16 keys,DV] += P^T dO        dK [16 keys,DK] += dS^T Q
 *
 * While one step is multiplied the next is on its way; warp w looks up and copies row tile w of
 * it. Grid (blocks of keys, units of one block at most, DKV_PARTS): wide heads take two CUDA blocks,
 * for half of the columns each. Shared: K and V of the block, two steps; 96 KiB at 128/128. */
template <int DK, int DV>
static __global__ void __launch_bounds__(DKV_WARPS *WARP_SIZE, 2)
    dkv_kernel(grad_args a, inverse_list inv, int step) {
    NSA_DYNAMIC_SHARED(bf16, s_base);
    __shared__ uint64_t s_mask[2][DKV_WARPS];
    enum { PARTS = DKV_PARTS(DK), NK = DK / PARTS / TILE_N, NV = DV / PARTS / TILE_N };
    const dims *c = &a.f.c;
    const int64_t block = blockIdx.x, h = block / inv.stride, first = blockIdx.y * inv.unit_rows;
    const int64_t rows = min(inv.unit_rows, inv.count[block] - first), tiles = rows * c->GT;
    const int64_t start = inv.start[block] + first;
    const int warp = warp_id(), key = warp * TILE_ROWS, branch = inv.branch;
    const dkv_smem<DK, DV> m = dkv_smem_of<DK, DV>(s_base);
    row_frags<DK, PARTS == 1> k;
    row_frags<DV, PARTS == 1> v;
    acc_tiles<NK> dk;
    acc_tiles<NV> dv;
    if (rows <= 0)
        return;
    const block_ptrs at = block_at(&a.f.in[branch], c, block);
    copy_rows_async<DK>(m.k, at.k, BLOCK, (int)threadIdx.x, DKV_WARPS * WARP_SIZE);
    copy_rows_async<DV>(m.v, at.v, BLOCK, (int)threadIdx.x, DKV_WARPS * WARP_SIZE);
    nsa_cp_async_commit();
    nsa_cp_async_wait<0>();
    __syncthreads();
    k.load(m.k + key * DK);
    v.load(m.v + key * DV);
    zero_acc(&dk);
    zero_acc(&dv);
    int64_t row = -1, next = warp < step ? row_of_unit(&inv, start, warp, tiles, c->GT) : -1;
    int t = -1; /* of `row`; it and the row are looked up a step ahead of their use */
    const int64_t any_row = inv.list ? inv.list[start] : start;
    const int b = (int)(block % inv.stride - a.f.seqs[a.f.row_seq[any_row]].first_block[branch]);
    for (int64_t i = -step; i < tiles; i += step) { /* the first time only loads */
        const int which = (int)(i / step & 1);
        if (lane_id() == 0)
            s_mask[which][warp] = visible_keys(&a, branch, h, b, row, t);
        nsa_cp_async_wait<0>();
        __syncthreads(); /* this step has arrived, the last one is used */
        row = next;
        t = row < 0 ? -1 : a.f.row_t[row];
        if (row >= 0)
            load_row_tile<DK, DV>(&a, branch,
                                  head_tile(c, row, (int)h, (int)((i + step + warp) % c->GT)),
                                  dkv_step_of(m, which ^ 1, step), warp);
        nsa_cp_async_commit();
        next = warp < step ? row_of_unit(&inv, start, i + 2 * step + warp, tiles, c->GT) : -1;
        const dkv_step x = dkv_step_of(m, which, step);
        for (int tile = 0; i >= 0 && tile < step; tile++) {
            const unsigned mask = (unsigned)(s_mask[which][tile] >> key) & 0xffffu;
            if (mask)
                add_row_tile(&dk, &dv, k, v, x, tile, c->scale2, mask);
        }
    }
    scale_acc(&dk, c->scale);
    const int64_t unit = inv.first_unit[block] + blockIdx.y;
    real *to = inv.partial + (unit * 2 * BLOCK + key) * c->wp;
    store_acc(to + (int)blockIdx.z * NV * TILE_N, c->wp, &dv, TILE_ROWS);
    store_acc(to + (int64_t)BLOCK * c->wp + (int)blockIdx.z * NK * TILE_N, c->wp, &dk, TILE_ROWS);
}

enum { REDUCE_THREADS = 256 }; /* of a CUDA block of reduce_partials */

/* dv and dk of a block: the sum over its units, in their order. Grid: blocks of keys. */
static __global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_partials(grad_args a, inverse_list inv) {
    const dims *c = &a.f.c;
    const int64_t block = blockIdx.x, size = 2 * BLOCK * c->wp;
    const int64_t first = inv.first_unit[block], units = units_of(&inv, inv.count[block]);
    const kv_blocks *in = &a.f.in[inv.branch];
    for (int i = (int)threadIdx.x; i < size; i += REDUCE_THREADS) {
        const int row = i / c->wp, col = i % c->wp;
        float total = 0;
        for (int64_t unit = first; unit < first + units; unit++)
            total += inv.partial[unit * size + i];
        if (row < BLOCK && col < c->dvp)
            in->gradient[VALUES][(block * BLOCK + row) * c->dvp + col] = total;
        if (row >= BLOCK && col < c->dkp)
            in->gradient[KEYS][(block * BLOCK + row - BLOCK) * c->dkp + col] = total;
    }
}

/* ---------------------------------------------------------------- launches */

/* Row tiles in a step: as many as shared memory holds beside s_mask, one for each warp at most. */
template <int DK, int DV> static nsa_status open_dkv(stage *st, scratch *s) {
    s->dkv_tiles = DKV_WARPS;
    while (s->dkv_tiles > 1 &&
           dkv_smem<DK, DV>::bytes(s->dkv_tiles) + 2 * DKV_WARPS * sizeof(uint64_t) >
               st->max_shared)
        s->dkv_tiles--;
    return nsa_allow_shared(dkv_kernel<DK, DV>);
}

template <int DK, int DV>
static nsa_status launch_dkv(stage *st, const grad_args *args, const inverse_list *inv) {
    const int step = ((const scratch *)st->scratch)->dkv_tiles;
    NSA_LAUNCH((dkv_kernel<DK, DV>),
               dim3((unsigned)inv->blocks, (unsigned)inv->max_units, DKV_PARTS(DK)),
               DKV_WARPS * WARP_SIZE, (dkv_smem<DK, DV>::bytes(step)), st->stream, *args, *inv,
               step);
    NSA_LAUNCHED("dkv");
    NSA_LAUNCH(reduce_partials, (unsigned)inv->blocks, REDUCE_THREADS, 0, st->stream, *args, *inv);
    NSA_LAUNCHED("reduce_partials");
    return NSA_OK;
}

nsa_status open_keys(stage *st, scratch *s) {
    return BY_WIDTH(&st->c, open_dkv, st, s);
}

/* dk and dv of one branch, by its inverse list. */
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *inv) {
    return BY_WIDTH(&args->f.c, launch_dkv, st, args, inv);
}
