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
                                                        int b, int r, int t) {
    const dims *c = &a->f.c;
    if (t < 0 || branch != SLC)
        return mask_of(visible_range(c, branch, t), b);
    if (c->lb % BLOCK == 0)
        return range_mask(0, t + 1 - b * BLOCK);
    const int32_t *idx = a->f.block_idx + ((int64_t)r * c->Hkv + h) * c->n;
    uint64_t mask = 0;
    for (int i = 0; i < c->n && idx[i] >= 0; i++)
        mask |= selected_mask(c, idx[i], t, b);
    return mask;
}

/* A step of row tiles in shared memory: as many as fit the smallest, one for each warp at most. */
template <int DK, int DV> struct dkv_step {
    enum { TILES = DK + DV <= 256 ? 4 : DK + DV < 512 ? 2 : 1 };
    bf16 q[TILES * TILE_ROWS * DK], dout[TILES * TILE_ROWS * DV];
    row_terms terms[TILES * TILE_ROWS];
};

/* The shared memory of a CUDA block: its keys and values, and two steps. */
template <int DK, int DV> struct dkv_smem {
    bf16 k[BLOCK * DK], v[BLOCK * DV];
    dkv_step<DK, DV> step[2];
};

/* Start copying a row tile to place `at` of a step, by one warp. */
template <int DK, int DV>
static __device__ __forceinline__ void load_row_tile(const grad_args *a, int branch, int64_t tile,
                                                     dkv_step<DK, DV> *x, int at) {
    copy_rows_async<DK, TILE_ROWS>(x->q + at * TILE_ROWS * DK, a->f.q + tile * TILE_ROWS * DK,
                                   lane_id(), WARP_SIZE);
    copy_rows_async<DV, TILE_ROWS>(x->dout + at * TILE_ROWS * DV, a->dout + tile * TILE_ROWS * DV,
                                   lane_id(), WARP_SIZE);
    if (lane_id() < TILE_ROWS)
        nsa_cp_async_16(x->terms + at * TILE_ROWS + lane_id(),
                        a->terms + (branch * a->row_tiles + tile) * TILE_ROWS + lane_id());
}

/* Fragments of the warp's 16 keys or values, kept in registers or, for wide heads, loaded when they
 * are needed. */
template <int D, bool KEPT> struct key_frags {
    frag_a x[KEPT ? D / TILE_K : 1];
    const bf16 *s_rows;
};

template <int D, bool KEPT>
static __device__ __forceinline__ void load_frags(key_frags<D, KEPT> *to, const bf16 *s_rows) {
    to->s_rows = s_rows;
#pragma unroll
    for (int k = 0; KEPT && k < D / TILE_K; k++)
        to->x[k] = load_a<D>(s_rows, k * TILE_K);
}

/* acc [16 keys,16 rows] += A B^T over columns k..k+15, B = s_b [16][D]. */
template <int D, bool KEPT>
static __device__ __forceinline__ void add_products(acc_tiles<2> *acc,
                                                    const key_frags<D, KEPT> &keys,
                                                    const bf16 *s_b, int k) {
    const frag_a a = KEPT ? keys.x[KEPT ? k / TILE_K : 0] : load_a<D>(keys.s_rows, k);
    frag_b b[2];
    load_b<D>(b, s_b, k);
    mma(acc->x[0], a, b[0]);
    mma(acc->x[1], a, b[1]);
}

/* acc [16 keys, 8 N] += P^T B, B = s_b [16][D], 8 N of its columns from `col` on. */
template <int D, int N>
static __device__ __forceinline__ void add_rows(acc_tiles<N> *acc, const frag_a &p,
                                                const bf16 *s_b, int col) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        frag_b b[2];
        load_b_trans<D>(b, s_b + at_column(0, col), n * TILE_N);
        mma(acc->x[n], p, b[0]);
        mma(acc->x[n + 1], p, b[1]);
    }
}

/* dk and dv of the warp's 16 keys from one row tile. The two products with the keys and the values
 * take turns, for they wait for their own sums alone. MASKED: a bit of `mask` says which keys the
 * row sees, else all. */
template <int DK, int DV, bool MASKED, int NK, int NV>
static __device__ __forceinline__ void
add_row_tile(acc_tiles<NK> *dk, acc_tiles<NV> *dv, const key_frags<DK, NK * TILE_N == DK> &k,
             const key_frags<DV, NK * TILE_N == DK> &v, const dkv_step<DK, DV> *x, int tile,
             float scale2, unsigned mask) {
    const bf16 *s_q = x->q + tile * TILE_ROWS * DK, *s_dout = x->dout + tile * TILE_ROWS * DV;
    const row_terms *terms = x->terms + tile * TILE_ROWS + lane_col();
    acc_tiles<2> s, dp;
    zero_acc(&s);
    zero_acc(&dp);
#pragma unroll
    for (int col = 0; col < (DK > DV ? DK : DV); col += TILE_K) {
        if (col < DK)
            add_products(&s, k, s_q, col);
        if (col < DV)
            add_products(&dp, v, s_dout, col);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float *score = &s.x[i / 4][i % 4], *grad = &dp.x[i / 4][i % 4];
        const bool visible = !MASKED || (mask >> (lane_row() + i % 4 / 2 * 8) & 1);
        softmax_backward(scale2, score, grad, terms[i / 4 * TILE_N + i % 2]);
        *score = visible ? *score : 0;
        *grad = visible ? *grad : 0;
    }
    add_rows<DV>(dv, a_of_acc(s.x[0], s.x[1]), s_dout, (int)blockIdx.z * NV * TILE_N);
    add_rows<DK>(dk, a_of_acc(dp.x[0], dp.x[1]), s_q, (int)blockIdx.z * NK * TILE_N);
}

/* Rows of a work unit, as its CUDA block goes through them. */
typedef struct unit_rows {
    int64_t start; /* where they begin in the list, or the first row */
    int tiles;     /* row tiles */
} unit_rows;

/* Row of row tile i of a unit; -1 if there is none. */
static __device__ __forceinline__ int row_of_unit(const inverse_list *inv, const unit_rows &x,
                                                  int i, int GT) {
    const int64_t at = x.start + (GT == 1 ? i : i / GT);
    return i >= x.tiles ? -1 : inv->list ? inv->list[at] : (int)at;
}

/* One work unit: up to unit_rows rows that see one block of keys, a step of row tiles at a time.
 * Keys are the rows of matrix tiles here, and each warp has 16 of them to the end:
 *
 *     S^T [16 keys,16 rows] = K Q^T    dP^T = V dO^T    ->    P^T and dS^T, which are A already
 *     dV [16 keys,DV] += P^T dO        dK [16 keys,DK] += dS^T Q
 *
 * While one step is multiplied the next is on its way; warp w looks up and copies row tile w of it.
 * Grid (blocks of keys, units of one block at most, DKV_PARTS): wide heads take two CUDA blocks, for
 * half of the columns each. Shared: dkv_smem, 98 KiB at 128/128. */
template <int DK, int DV>
static __global__ void __launch_bounds__(DKV_WARPS *WARP_SIZE, 2)
    dkv_kernel(grad_args a, inverse_list inv) {
    NSA_DYNAMIC_SHARED(bf16, s_base);
    __shared__ __align__(8) uint16_t s_mask[2][DKV_WARPS][DKV_WARPS]; /* [keys][row tile] */
    enum { STEP = dkv_step<DK, DV>::TILES, PARTS = DKV_PARTS(DK) };
    enum { NK = DK / PARTS / TILE_N, NV = DV / PARTS / TILE_N };
    dkv_smem<DK, DV> *m = (dkv_smem<DK, DV> *)s_base;
    const dims *c = &a.f.c;
    const int64_t block = blockIdx.x, h = block / inv.stride, first = blockIdx.y * inv.unit_rows;
    const int64_t rows = min(inv.unit_rows, inv.count[block] - first);
    const unit_rows unit = {inv.start[block] + first, (int)rows * c->GT};
    const int warp = warp_id(), key = warp * TILE_ROWS, branch = inv.branch;
    key_frags<DK, PARTS == 1> k;
    key_frags<DV, PARTS == 1> v;
    acc_tiles<NK> dk;
    acc_tiles<NV> dv;
    if (rows <= 0)
        return;
    const block_ptrs at = block_at<DK, DV>(&a.f.in[branch], block);
    copy_rows_async<DK, BLOCK>(m->k, at.k, (int)threadIdx.x, DKV_WARPS * WARP_SIZE);
    copy_rows_async<DV, BLOCK>(m->v, at.v, (int)threadIdx.x, DKV_WARPS * WARP_SIZE);
    nsa_cp_async_commit();
    nsa_cp_async_wait<0>();
    __syncthreads();
    load_frags(&k, m->k + key * DK);
    load_frags(&v, m->v + key * DV);
    zero_acc(&dk);
    zero_acc(&dv);
    int row = -1, next = warp < STEP ? row_of_unit(&inv, unit, warp, c->GT) : -1;
    int t = -1; /* of `row`; it and the row are looked up a step ahead of their use */
    const int any_row = row_of_unit(&inv, unit, 0, 1);
    const int b = (int)(block % inv.stride - a.f.seqs[a.f.row_seq[any_row]].first_block[branch]);
    for (int i = -STEP, which = 0; i < unit.tiles; i += STEP, which ^= 1) { /* first only loads */
        const uint64_t visible = visible_keys(&a, branch, h, b, row, t);
        if (lane_id() < DKV_WARPS)
            s_mask[which][lane_id()][warp] = (uint16_t)(visible >> lane_id() * TILE_ROWS);
        nsa_cp_async_wait<0>();
        __syncthreads(); /* this step has arrived, the last one is used */
        row = next;
        t = row < 0 ? -1 : a.f.row_t[row];
        if (row >= 0)
            load_row_tile(&a, branch, head_tile(c, row, (int)h, c->GT == 1 ? 0 : (i + STEP + warp) % c->GT),
                          &m->step[which ^ 1], warp);
        nsa_cp_async_commit();
        next = warp < STEP ? row_of_unit(&inv, unit, i + 2 * STEP + warp, c->GT) : -1;
        uint64_t masks; /* 16 bits a row tile */
        memcpy(&masks, s_mask[which][warp], sizeof masks);
        if (masks == ALL_KEYS >> (BLOCK - STEP * TILE_ROWS)) {
#pragma unroll 2
            for (int tile = 0; tile < STEP; tile++)
                add_row_tile<DK, DV, false>(&dk, &dv, k, v, &m->step[which], tile, c->scale2, 0);
        } else {
#pragma unroll 1
            for (int tile = 0; tile < STEP; tile++) {
                const unsigned mask = (unsigned)(masks >> tile * TILE_ROWS) & 0xffffu;
                if (mask)
                    add_row_tile<DK, DV, true>(&dk, &dv, k, v, &m->step[which], tile, c->scale2,
                                               mask);
            }
        }
    }
    scale_acc(&dk, c->scale);
    real *to = inv.partial +
               ((inv.first_unit[block] + blockIdx.y) * 2 * BLOCK + key) * (int64_t)c->wp;
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

template <int DK, int DV> static nsa_status allow_shared(void) {
    return nsa_allow_shared(dkv_kernel<DK, DV>);
}

template <int DK, int DV>
static nsa_status launch_dkv(stage *st, const grad_args *args, const inverse_list *inv) {
    NSA_LAUNCH((dkv_kernel<DK, DV>),
               dim3((unsigned)inv->blocks, (unsigned)inv->max_units, DKV_PARTS(DK)),
               DKV_WARPS * WARP_SIZE, sizeof(dkv_smem<DK, DV>), st->stream, *args, *inv);
    NSA_LAUNCHED("dkv");
    NSA_LAUNCH(reduce_partials, (unsigned)inv->blocks, REDUCE_THREADS, 0, st->stream, *args, *inv);
    NSA_LAUNCHED("reduce_partials");
    return NSA_OK;
}

nsa_status open_keys(stage *st) {
    return BY_WIDTH(&st->c, allow_shared);
}

/* dk and dv of one branch, by its inverse list. */
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *inv) {
    return BY_WIDTH(&args->f.c, launch_dkv, st, args, inv);
}
