/** @file
 *  @brief Backward by keys: dk and dv of a block, from the rows of a slice that see it, and dS,
 * kept for dq. Each work unit stores sums of its own, which are added in their order: no atomics,
 * and the same bits in every run. */
#include "backward.cuh"

/* Parts of the columns of dk and dv: half of them are registers enough for wide heads. */
#define DKV_PARTS(DK) ((DK) <= 128 ? 1 : 2)

enum { WARP_KEYS = 32, KEY_GROUPS = BLOCK / WARP_KEYS, KEY_M = WARP_KEYS / TILE_ROWS };

/* A step of row tiles in shared memory: as many as fit 99 KiB beside K and V, which sm_86 and sm_89
 * have, one for each warp at most. */
template <int DK, int DV> struct dkv_step {
    enum { TILES = DK + DV <= 256 ? 4 : DK + DV < 384 ? 2 : 1 };
    bf16 q[TILES * TILE_ROWS * DK], dout[TILES * TILE_ROWS * DV];
    row_terms terms[TILES * TILE_ROWS];
    uint4 *ds[TILES]; /* where dS goes */
};

/* P^T of a row tile as fragments, from the warps that make dv to those that make dk: [tile of 16
 * keys][lane] of each group of keys. */
typedef frag_a p_tile[KEY_GROUPS][KEY_M][WARP_SIZE];

/* The shared memory of a CUDA block: its keys and values, two steps, and P^T: of two row tiles in
 * turns, or of one if a step is one. Where keys and values are kept in registers, P^T takes the
 * place of the keys. */
template <int DK, int DV> struct dkv_smem {
    enum { KEPT = DKV_PARTS(DK) == 1, P_TILES = dkv_step<DK, DV>::TILES > 1 ? 2 : 1 };
    bf16 k[BLOCK * DK], v[BLOCK * DV];
    dkv_step<DK, DV> step[2];

    __device__ __forceinline__ p_tile *p(void) {
        return (p_tile *)(KEPT ? (void *)this : (void *)(this + 1));
    }

    static size_t bytes(void) {
        return sizeof(dkv_smem) + (KEPT ? 0 : P_TILES * sizeof(p_tile));
    }
};

/* Start copying a row tile to place `at` of a step, by one warp. */
template <int DK, int DV>
static __device__ __forceinline__ void load_row_tile(const grad_args *a, const inverse_list *inv,
                                                     int64_t tile, int place, dkv_step<DK, DV> *x,
                                                     int at) {
    copy_rows_async<DK, TILE_ROWS>(x->q + at * TILE_ROWS * DK, a->f.q + tile * TILE_ROWS * DK,
                                   lane_id(), WARP_SIZE);
    copy_rows_async<DV, TILE_ROWS>(x->dout + at * TILE_ROWS * DV, a->dout + tile * TILE_ROWS * DV,
                                   lane_id(), WARP_SIZE);
    if (lane_id() < TILE_ROWS)
        nsa_cp_async_16(x->terms + at * TILE_ROWS + lane_id(),
                        a->terms + (inv->branch * a->row_tiles + tile) * TILE_ROWS + lane_id());
    if (lane_id() == 0)
        x->ds[at] = ds_tile(a, inv, tile, place);
}

/* Fragments of the warp's 32 keys, or their values, kept in registers or, for wide heads, loaded
 * when they are needed. */
template <int D, bool KEPT> struct key_frags {
    frag_a x[KEPT ? D / TILE_K : 1][KEY_M];
    const bf16 *s_rows;
};

template <int D, int W, bool KEPT>
static __device__ __forceinline__ void keep_keys(key_frags<W, KEPT> *to, const bf16 *s_rows) {
    to->s_rows = s_rows;
#pragma unroll
    for (int i = 0; KEPT && i < D / TILE_K * KEY_M; i++)
        to->x[i / KEY_M][i % KEY_M] =
            load_a<D>(s_rows + i % KEY_M * TILE_ROWS * D, i / KEY_M * TILE_K);
}

/* acc [32 keys,16 rows] += A B^T, B = s_b [16][D]: S^T = K Q^T or dP^T = V dO^T. */
template <int D, int W, bool KEPT>
static __device__ __forceinline__ void key_products(acc_tiles<2> (&acc)[KEY_M],
                                                    const key_frags<W, KEPT> &keys,
                                                    const bf16 *s_b) {
#pragma unroll
    for (int k = 0; k < D; k += TILE_K) {
        frag_b b[2];
        load_b<D>(b, s_b, k);
#pragma unroll
        for (int m = 0; m < KEY_M; m++) {
            const frag_a a = KEPT ? keys.x[KEPT ? k / TILE_K : 0][m]
                                  : load_a<D>(keys.s_rows + m * TILE_ROWS * D, k);
            mma(acc[m].x[0], a, b[0]);
            mma(acc[m].x[1], a, b[1]);
        }
    }
}

/* acc [32 keys, 8 N] += P^T B, B = s_b [16][D], 8 N of its columns from `col` on. */
template <int D, int N, int W>
static __device__ __forceinline__ void add_rows(acc_tiles<W> (&acc)[KEY_M],
                                                const frag_a (&p)[KEY_M], const bf16 *s_b,
                                                int col) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        frag_b b[2];
        load_b_trans<D>(b, s_b + at_column(0, col), n * TILE_N);
#pragma unroll
        for (int m = 0; m < KEY_M; m++) {
            mma(acc[m].x[n], p[m], b[0]);
            mma(acc[m].x[n + 1], p[m], b[1]);
        }
    }
}

/* What a warp holds: 32 keys' dv and their K, or their dk and their V. */
template <int DK, int DV> struct key_state {
    enum { PARTS = DKV_PARTS(DK), W = DK > DV ? DK : DV };
    enum { NK = DK / PARTS / TILE_N, NV = DV / PARTS / TILE_N };
    key_frags<W, PARTS == 1> keys;
    acc_tiles<W / PARTS / TILE_N> acc[KEY_M] = {};
    bool values; /* dv */
};

/* From S^T to gate P^T, and to the warp that makes dk of the same keys. */
template <bool MASKED>
static __device__ __forceinline__ void make_p(frag_a (&p)[KEY_M], acc_tiles<2> (&s)[KEY_M],
                                              const row_terms *terms, float scale2, unsigned mask,
                                              frag_a (*s_p)[WARP_SIZE]) {
#pragma unroll
    for (int m = 0; m < KEY_M; m++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const row_terms &term = terms[i / 4 * TILE_N + lane_col() + i % 2];
            const bool visible =
                !MASKED || (mask >> (m * TILE_ROWS + lane_row() + i % 4 / 2 * 8) & 1);
            float *x = &s[m].x[i / 4][i % 4];
            *x = visible ? exp_score(scale2, *x, term.row_max) * term.weight : 0;
        }
        p[m] = a_of_acc(s[m].x[0], s[m].x[1]);
        *(uint4 *)&s_p[m][lane_id()] = make_uint4(p[m].x[0], p[m].x[1], p[m].x[2], p[m].x[3]);
    }
}

/* From dP^T and gate P^T to dS^T / scale, which the kernels of dq want too:
 *     dS / scale = gate P (dP - dgate),   dgate = <dO,o> = sum_s P_s dP_s.
 * Who sums it multiplies by the scale at the end. */
template <bool MASKED>
static __device__ __forceinline__ void make_ds(frag_a (&ds)[KEY_M], acc_tiles<2> (&dp)[KEY_M],
                                               const row_terms *terms, unsigned mask,
                                               const frag_a (*s_p)[WARP_SIZE], uint4 *g_ds) {
#pragma unroll
    for (int m = 0; m < KEY_M; m++) {
        const uint4 four = *(const uint4 *)&s_p[m][lane_id()];
        const unsigned pair[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const unsigned two = pair[i / 4 * 2 + i % 4 / 2];
            const float p = i % 2 ? high_half(two) : low_half(two);
            const bool visible =
                !MASKED || (mask >> (m * TILE_ROWS + lane_row() + i % 4 / 2 * 8) & 1);
            float *x = &dp[m].x[i / 4][i % 4];
            *x = visible ? p * (*x - terms[i / 4 * TILE_N + lane_col() + i % 2].dgate) : 0;
        }
        ds[m] = a_of_acc(dp[m].x[0], dp[m].x[1]);
        if (blockIdx.z == 0) /* both halves of a wide head make the same */
            g_ds[m * WARP_SIZE + lane_id()] =
                make_uint4(ds[m].x[0], ds[m].x[1], ds[m].x[2], ds[m].x[3]);
    }
}

/* dv or dk of the warp's 32 keys from one row tile. MASKED: a bit of `mask` for each key says
 * whether the row sees it, else it sees all. */
template <int DK, int DV, bool MASKED>
static __device__ __forceinline__ void add_row_tile(key_state<DK, DV> *x, dkv_smem<DK, DV> *m,
                                                    const dkv_step<DK, DV> *step, int tile,
                                                    float scale2, unsigned mask) {
    enum { NK = key_state<DK, DV>::NK, NV = key_state<DK, DV>::NV };
    const bf16 *s_q = step->q + tile * TILE_ROWS * DK, *s_dout = step->dout + tile * TILE_ROWS * DV;
    const row_terms *terms = step->terms + tile * TILE_ROWS;
    frag_a(*s_p)[WARP_SIZE] = m->p()[tile % dkv_smem<DK, DV>::P_TILES][warp_id() % KEY_GROUPS];
    acc_tiles<2> s[KEY_M] = {};
    frag_a p[KEY_M];
    if (DK == DV || x->values)
        key_products<DK>(s, x->keys, x->values ? s_q : s_dout);
    else
        key_products<DV>(s, x->keys, s_dout);
    if (x->values)
        make_p<MASKED>(p, s, terms, scale2, mask, s_p);
    __syncthreads(); /* P has arrived, and that of the row tile before is used */
    if (!x->values)
        make_ds<MASKED>(p, s, terms, mask, s_p,
                        step->ds[tile] + warp_id() % KEY_GROUPS * KEY_M * WARP_SIZE);
    if (DK == DV || x->values)
        add_rows<DV, NV>(x->acc, p, x->values ? s_dout : s_q, (int)blockIdx.z * NV * TILE_N);
    else
        add_rows<DK, NK>(x->acc, p, s_q, (int)blockIdx.z * NK * TILE_N);
}

/* A work unit: its rows, and its block of keys. */
typedef struct unit_rows {
    int64_t start;  /* where its rows begin in the list, or the first row */
    int tiles;      /* its row tiles */
    int kvh, block; /* kv head, block of the sequence */
    int place;      /* of its dS in every row; selected blocks have one in each list entry */
    full_range all; /* the rows that see all keys of the block */
} unit_rows;

/* The list entry of row tile i of a unit; row -1 if there is none. */
static __device__ __forceinline__ list_entry entry_of_unit(const inverse_list *inv,
                                                           const unit_rows &x, int i, int GT) {
    const int64_t at = x.start + (GT == 1 ? i : i / GT);
    return i >= x.tiles ? list_entry{-1, 0}
           : inv->list  ? inv->list[at]
                        : list_entry{(int)at, x.place};
}

/* The unit of `rows` rows, from number `first` of its block's on. */
static __device__ __forceinline__ unit_rows unit_of(const grad_args *a, const inverse_list *inv,
                                                    int64_t block, int64_t first, int rows) {
    unit_rows x = {};
    x.start = inv->start[block] + first;
    x.tiles = rows * a->f.c.GT;
    x.kvh = (int)(block / inv->stride);
    const sequence *sq = &a->f.seqs[a->f.row_seq[entry_of_unit(inv, x, 0, 1).row]];
    x.block = (int)(block % inv->stride - sq->first_block[inv->branch]);
    x.place = x.block % inv->width;
    x.all = rows_that_see_all(&a->f.c, inv->branch, x.block);
    return x;
}

/* The first unit of a block is that of blockIdx.y = first_wave(). A compressed block is seen by all
 * rows of its sequence from some position on: units that run together, of one wave, have about the
 * same rows. */
static __device__ __forceinline__ int64_t first_wave(const inverse_list *inv, int64_t block) {
    return inv->branch == CMP ? (inv->start[block] - inv->first_row) / UNIT_ROWS : 0;
}

/* Load the warp's keys, for dv, or values, for dk. */
template <int DK, int DV>
static __device__ __forceinline__ void load_state(key_state<DK, DV> *x, dkv_smem<DK, DV> *m,
                                                  const block_ptrs &at) {
    const int key = warp_id() % KEY_GROUPS * WARP_KEYS, threads = DKV_WARPS * WARP_SIZE;
    copy_rows_async<DK, BLOCK>(m->k, at.k, (int)threadIdx.x, threads);
    copy_rows_async<DV, BLOCK>(m->v, at.v, (int)threadIdx.x, threads);
    nsa_cp_async_commit();
    nsa_cp_async_wait<0>();
    __syncthreads();
    x->values = warp_id() < KEY_GROUPS;
    if (DK == DV || x->values)
        keep_keys<DK>(&x->keys, x->values ? m->k + key * DK : m->v + key * DV);
    else
        keep_keys<DV>(&x->keys, m->v + key * DV);
}

/* The warp's sums to the unit's partial ones [2][64][wp]: dv, then dk. */
template <int DK, int DV>
static __device__ __forceinline__ void store_state(key_state<DK, DV> *x, real *g_partial, int wp,
                                                   float scale) {
    enum { NK = key_state<DK, DV>::NK, NV = key_state<DK, DV>::NV };
    const int key = warp_id() % KEY_GROUPS * WARP_KEYS;
#pragma unroll
    for (int i = 0; i < KEY_M; i++) {
        real *to = g_partial + (int64_t)((x->values ? 0 : BLOCK) + key + i * TILE_ROWS) * wp;
        if (!x->values)
            scale_rows(&x->acc[i], {scale, scale});
        if (DK == DV || x->values)
            store_acc(to + (int)blockIdx.z * NV * TILE_N, wp, &x->acc[i], TILE_ROWS, NV);
        else
            store_acc(to + (int)blockIdx.z * NK * TILE_N, wp, &x->acc[i], TILE_ROWS, NK);
    }
}

/* One step of row tiles, number i.. of the unit. */
template <int DK, int DV>
static __device__ __forceinline__ void add_step(key_state<DK, DV> *x, dkv_smem<DK, DV> *m,
                                                const grad_args *a, const inverse_list *inv,
                                                const unit_rows &unit, int i, int which) {
    enum { STEP = dkv_step<DK, DV>::TILES };
    const dims *c = &a->f.c;
    const dkv_step<DK, DV> *step = &m->step[which];
    const int count = min((int)STEP, unit.tiles - i);
    bool all = count == STEP;
#pragma unroll
    for (int tile = 0; tile < STEP; tile++) {
        const int t = tile < count ? step->terms[tile * TILE_ROWS].t : -1;
        all &= t >= unit.all.from && t <= unit.all.to;
    }
    if (all) {
#pragma unroll
        for (int tile = 0; tile < STEP; tile++)
            add_row_tile<DK, DV, false>(x, m, step, tile, c->scale2, 0);
        return;
    }
#pragma unroll 1
    for (int tile = 0; tile < count; tile++) {
        const uint64_t mask = visible_keys(&a->f, inv->branch, unit.kvh, unit.block,
                                           entry_of_unit(inv, unit, i + tile, c->GT).row,
                                           step->terms[tile * TILE_ROWS].t);
        add_row_tile<DK, DV, true>(x, m, step, tile, c->scale2,
                                   (unsigned)(mask >> warp_id() % KEY_GROUPS * WARP_KEYS));
    }
}

/* One work unit: up to UNIT_ROWS rows that see one block of keys, a step of row tiles at a time.
 * Keys are the rows of matrix tiles here, 32 a warp. Up to 128 columns they stay in registers, and
 * their sums always. Half
 * of the warps make dv, half dk, by the same two products, so that every fragment of Q and dO that
 * is loaded is multiplied twice:
 *
 *     warps 0, 1   S^T [32 keys,16 rows] = K Q^T    ->  P^T, also to shared memory
 *     warps 2, 3   dP^T                  = V dO^T
 *     all wait
 *     warps 2, 3   dS^T = P^T (dP^T - dgate)        ->  also to device memory
 *     warps 0, 1   dV [32 keys,DV] += P^T dO
 *     warps 2, 3   dK [32 keys,DK] += dS^T Q
 *
 * While one step is multiplied the next is on its way; warp w copies row tile w of it, whose row it
 * has looked up a step before. Grid (blocks of keys, waves of units, DKV_PARTS): wide heads take
 * two CUDA blocks, for half of the columns each. Shared: dkv_smem, 98 KiB at 128/128. */
template <int DK, int DV>
static __global__ void __launch_bounds__(DKV_WARPS *WARP_SIZE, 2)
    dkv_kernel(grad_args a, inverse_list inv) {
    NSA_DYNAMIC_SHARED(bf16, s_base);
    enum { STEP = dkv_step<DK, DV>::TILES };
    dkv_smem<DK, DV> *m = (dkv_smem<DK, DV> *)s_base;
    const dims *c = &a.f.c;
    const int64_t block = blockIdx.x;
    key_state<DK, DV> x;
    if (inv.count[block] == 0)
        return;
    const int64_t number = blockIdx.y - first_wave(&inv, block);
    const int64_t first = number * UNIT_ROWS;
    const int64_t rows = min((int64_t)UNIT_ROWS, inv.count[block] - first);
    if (number < 0 || rows <= 0)
        return;
    const unit_rows unit = unit_of(&a, &inv, block, first, (int)rows);
    const int warp = warp_id();
    load_state(&x, m, block_at<DK, DV>(&a.f.in[inv.branch], block));
    list_entry next = entry_of_unit(&inv, unit, warp < STEP ? warp : unit.tiles, c->GT);
    for (int i = -STEP, which = 1; i < unit.tiles; i += STEP, which ^= 1) { /* first only loads */
        nsa_cp_async_wait<0>();
        __syncthreads(); /* this step has arrived, the last one is used */
        if (next.row >= 0)
            load_row_tile(
                &a, &inv,
                head_tile(c, next.row, unit.kvh, c->GT == 1 ? 0 : (i + STEP + warp) % c->GT),
                next.place, &m->step[which ^ 1], warp);
        nsa_cp_async_commit();
        next = entry_of_unit(&inv, unit, warp < STEP ? i + 2 * STEP + warp : unit.tiles, c->GT);
        if (i >= 0)
            add_step(&x, m, &a, &inv, unit, i, which);
    }
    store_state(&x, inv.partial + (inv.first_unit[block] + number) * 2 * BLOCK * (int64_t)c->wp,
                c->wp, c->scale);
}

enum { REDUCE_THREADS = 256 }; /* of a CUDA block of reduce_partials */

/* dv and dk of a block, added to those of the slices before: the sum over its units, in their
 * order. Grid (blocks of keys, 2 BLOCK wp /
 * REDUCE_THREADS): an element a thread, for one block may have many units. */
static __global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_partials(grad_args a, inverse_list inv) {
    const dims *c = &a.f.c;
    const int64_t block = blockIdx.x, size = 2 * BLOCK * c->wp;
    const int64_t first = inv.first_unit[block], units = units_of(inv.count[block]);
    const int i = (int)(blockIdx.y * REDUCE_THREADS + threadIdx.x);
    const int row = i / c->wp, col = i % c->wp;
    const kv_blocks *in = &a.f.in[inv.branch];
    float total = 0;
    if (units == 0)
        return;
#pragma unroll 8
    for (int64_t unit = first; unit < first + units; unit++)
        total += inv.partial[unit * size + i];
    if (row < BLOCK && col < c->dvp)
        in->gradient[VALUES][(block * BLOCK + row) * c->dvp + col] += total;
    if (row >= BLOCK && col < c->dkp)
        in->gradient[KEYS][(block * BLOCK + row - BLOCK) * c->dkp + col] += total;
}

/* ---------------------------------------------------------------- launches */

template <int DK, int DV> static nsa_status allow_shared(void) {
    return nsa_allow_shared(dkv_kernel<DK, DV>);
}

template <int DK, int DV>
static nsa_status launch_dkv(stage *st, const grad_args *args, const inverse_list *inv) {
    LAUNCH((dkv_kernel<DK, DV>), dim3((unsigned)inv->blocks, (unsigned)inv->waves, DKV_PARTS(DK)),
           DKV_WARPS * WARP_SIZE, (dkv_smem<DK, DV>::bytes()), st, *args, *inv);
    LAUNCH(reduce_partials,
           dim3((unsigned)inv->blocks, (unsigned)(2 * BLOCK * st->c.wp / REDUCE_THREADS)),
           REDUCE_THREADS, 0, st, *args, *inv);
    return NSA_OK;
}

nsa_status open_keys(stage *st) {
    return BY_WIDTH(&st->c, allow_shared);
}

/* dk and dv of one branch, by its inverse list. */
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *inv) {
    return BY_WIDTH(&args->f.c, launch_dkv, st, args, inv);
}
