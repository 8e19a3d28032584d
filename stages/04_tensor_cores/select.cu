/** @file
 *  @brief Selection of blocks (Eq. 9-11): importance by a second product with the compressed keys,
 *  now that each row's maximum and sum are known, then the best blocks of each row. */
#include "select.cuh"

/* ------------------------------------------------------------- importance */

/* Here keys are the rows of the tile and the heads of four queries its columns: column 8 i + c is
 * head 2 i + c % 2 of query c / 2. Then a lane's accumulators are all 16 heads of its query, lane %
 * 4, and the sum over heads needs no other lane. */
enum {
    WARP_QUERIES = 4,
    SELECT_WARPS = 4, /* of a CUDA block */
    SELECT_QUERIES = SELECT_WARPS * WARP_QUERIES,
    KEY_ROWS = BLOCK / TILE_ROWS,
    STATS_ROW = TILE_ROWS + 1,
    MAX_BATCH_FLOATS = 64 << 20, /* of importance that is not wanted as a result */
    SHORT_BATCH_TILES = 2        /* with NSA_DEBUG_MEMORY */
};

/* The shared memory of a CUDA block. */
typedef struct select_smem {
    bf16 *q;          /* [queries][16][DK], in the order of the columns */
    bf16 *k;          /* a block of keys [64][DK] */
    row_stats *stats; /* [queries][17]: four queries' rows of one head lie in different banks */
    float *ring;      /* [queries][ring] */
} select_smem;

template <int DK>
static __device__ __forceinline__ select_smem select_smem_of(bf16 *base, int queries) {
    select_smem m;
    m.q = base;
    m.k = m.q + queries * TILE_ROWS * DK;
    m.stats = (row_stats *)(m.k + BLOCK * DK);
    m.ring = (float *)(m.stats + queries * STATS_ROW);
    return m;
}

/* Start copying Q of heads g16 of the warp's queries, to where the columns want it: head 8 b + r of
 * a query becomes row 2 query + r % 2 of column tile 4 b + r / 2. s_q [4][16][DK]. Zeros for a
 * query that does not exist. */
template <int DK>
static __device__ __forceinline__ void load_columns(const attend_args *a, const tile_coord *coord,
                                                    bf16 *s_q, int g16) {
    const int r = lane_row(), piece = lane_id() % 4 ^ r / 2; /* what is at this lane's place */
    for (int query = 0; query < WARP_QUERIES; query++) {
        const int row = warp_id() * WARP_QUERIES + query;
        const bool there = row < coord->rows.count;
        const int64_t tile =
            head_tile(&a->c, coord->rows.first + (there ? row : 0), coord->kvh, g16);
        const bf16 *g_q = a->q + tile * TILE_ROWS * DK + lane_id() * PIECE;
        bf16 *s_to =
            s_q + r / 2 * MEM_ROWS * DK + (2 * query + r % 2) * MEM_COLS + (piece ^ query) * PIECE;
#pragma unroll
        for (int i = 0; i < DK / 16; i++) { /* tiles: two bands of rows, each DK / 32 */
            const int band = i / (DK / MEM_COLS), span = i % (DK / MEM_COLS);
            nsa_cp_async_16(s_to + (band * 4 * (DK / MEM_COLS) + span) * (MEM_ROWS * MEM_COLS),
                            g_q + i * (MEM_ROWS * MEM_COLS), there);
        }
    }
}

/* Their statistics; a head or query that does not exist has p = 0. */
static __device__ __forceinline__ void load_stats(const attend_args *a, const tile_coord *coord,
                                                  row_stats *s_stats, int queries, int g16) {
    const dims *c = &a->c;
    for (int i = (int)threadIdx.x; i < queries * TILE_ROWS; i += SELECT_WARPS * WARP_SIZE) {
        const int query = i / TILE_ROWS, g = g16 * TILE_ROWS + i % TILE_ROWS;
        const int64_t head = (coord->rows.first + query) * c->Hq + coord->kvh * c->G + g;
        s_stats[query * STATS_ROW + i % TILE_ROWS] = query < coord->rows.count && g < c->G
                                                         ? a->stats[head * BRANCHES + CMP]
                                                         : row_stats{0, 0};
    }
}

/* Start copying block b of the compressed keys, if there is one. */
template <int DK>
static __device__ __forceinline__ void load_keys(const attend_args *a, const tile_coord *coord,
                                                 bf16 *s_k, int b, int n_last) {
    if (b * BLOCK < n_last)
        copy_rows_async<DK, BLOCK>(
            s_k, first_block_of<DK, DK>(a, coord->sq, coord->kvh, CMP).k + (int64_t)b * BLOCK * DK,
            (int)threadIdx.x, SELECT_WARPS * WARP_SIZE);
}

/* Probabilities of the lane's keys summed over the 16 heads of its query, in their order: equal
 * scores give equal sums. To the ring buffer s_ring of the query, from key `first` on; tiles of
 * heads after the first add. */
static __device__ __forceinline__ void sum_heads(const acc_tiles<KEY_TILES> (&s)[KEY_ROWS],
                                                 float scale2, const row_stats *s_stats,
                                                 float *s_ring, bool add) {
    float sum[KEY_ROWS][2] = {};
#pragma unroll
    for (int n = 0; n < TILE_ROWS / 2; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const row_stats r = s_stats[2 * n + j];
#pragma unroll
            for (int m = 0; m < KEY_ROWS; m++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float e = exp_score(scale2, s[m].x[n][2 * i + j], r.row_max);
                    sum[m][i] = fmaf(e, r.inv_sum, sum[m][i]);
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < KEY_ROWS; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float *at = s_ring + m * TILE_ROWS + 8 * i + lane_row();
            *at = add ? *at + sum[m][i] : sum[m][i];
        }
    }
}

/* The tiles of rows of a launch, and where their importance goes: row r to [(r - first_row) Hkv J]
 * on. */
typedef struct select_tiles {
    const row_range *tiles; /* [count] */
    int64_t count, first_row;
    float *importance;
} select_tiles;

/* What a lane needs for the importance of its query, one of the warp's four: 8 lanes each. */
typedef struct query_blocks {
    const float *s_ring; /* the query's */
    float *g_imp;        /* its row */
    int own_block, n_visible;
} query_blocks;

/* Importance of the blocks from..to-1, as far as the queries have them. */
static __device__ __forceinline__ void store_importance(const dims *c, const query_blocks *x,
                                                        int ring, int from, int to) {
    __syncwarp();
    for (int j = from + lane_id() / WARP_QUERIES; j < min(to, x->own_block + 1);
         j += 2 * WARP_SIZE / WARP_QUERIES) {
        const int next = j + WARP_SIZE / WARP_QUERIES;
        float importance[2];
        importance_of(importance, c, x->s_ring, ring, x->n_visible, {j, next});
        x->g_imp[j] = importance[0];
        if (next < min(to, x->own_block + 1))
            x->g_imp[next] = importance[1];
    }
    __syncwarp();
}

/* Zero for blocks after a row's own, for the caller. g_imp: importance of the first row. */
static __device__ __forceinline__ void zero_later_blocks(const attend_args *a,
                                                         const tile_coord *coord, float *g_imp) {
    for (int row = warp_id(); row < coord->rows.count; row += SELECT_WARPS) {
        const int own_block = a->row_t[coord->rows.first + row] / a->c.lb;
        for (int64_t j = own_block + 1 + lane_id(); j < a->J; j += WARP_SIZE)
            g_imp[row * a->c.Hkv * a->J + j] = 0;
    }
}

/* Importance of all blocks of the rows of a tile, which share the blocks of compressed keys. Grid:
 * kv heads x tiles, the last first. Block: 4 warps with 4 rows each; the last ones have none if
 * shared memory has no room. Shared: select_smem, 90 KiB for 16 rows at dk = 128. */
template <int DK>
static __global__ void __launch_bounds__(SELECT_WARPS *WARP_SIZE, 2)
    importance_kernel(attend_args a, select_tiles x, int queries, int ring) {
    NSA_DYNAMIC_SHARED(bf16, s_base);
    const dims *c = &a.c;
    const tile_coord coord =
        tile_coord_of(&a, &x.tiles[x.count - 1 - blockIdx.x / c->Hkv], (int)(blockIdx.x % c->Hkv));
    const select_smem m = select_smem_of<DK>(s_base, queries);
    float *g_imp = x.importance + ((coord.rows.first - x.first_row) * c->Hkv + coord.kvh) * a.J;
    const int n_last = cmp_visible(c, coord.last_t), blocks = coord.last_t / c->lb + 1;
    const int first = warp_id() * WARP_QUERIES, row = first + lane_id() % WARP_QUERIES;
    const bool works = first < queries; /* this warp has rows */
    const row_stats *s_stats = m.stats + row * STATS_ROW;
    float *s_ring = m.ring + row * ring;
    const int t = position_of(&coord, row);
    const query_blocks query = {s_ring, g_imp + row * c->Hkv * a.J, t < 0 ? -1 : t / c->lb,
                                t < 0 ? 0 : cmp_visible(c, t)};
    int next = 0; /* blocks before this have their importance */
    load_keys<DK>(&a, &coord, m.k, 0, n_last);
    if (works)
        load_columns<DK>(&a, &coord, m.q + first * TILE_ROWS * DK, 0);
    load_stats(&a, &coord, m.stats, queries, 0);
    for (int b = 0; b * BLOCK < n_last; b++) {
        for (int g16 = 0; g16 < c->GT; g16++) {
            acc_tiles<KEY_TILES> s[KEY_ROWS] = {};
            nsa_cp_async_commit();
            nsa_cp_async_wait<0>();
            __syncthreads(); /* keys and columns have arrived */
            if (works)
                add_scores<DK>(s, m.k, m.q + first * TILE_ROWS * DK); /* [64 keys, 64 columns] */
            __syncthreads();                                          /* they are used */
            if (g16 == c->GT - 1)
                load_keys<DK>(&a, &coord, m.k, b + 1, n_last);
            if (works && c->GT > 1)
                load_columns<DK>(&a, &coord, m.q + first * TILE_ROWS * DK, (g16 + 1) % c->GT);
            if (works)
                sum_heads(s, c->scale2, s_stats, s_ring + (b * BLOCK & (ring - 1)), g16 > 0);
            if (c->GT > 1) {
                __syncthreads(); /* the statistics are used */
                load_stats(&a, &coord, m.stats, queries, (g16 + 1) % c->GT);
            }
        }
        const int end = min(blocks, (b + 1) * BLOCK / c->per_block);
        store_importance(c, &query, ring, next, end);
        next = max(next, end);
    }
    nsa_cp_async_wait<0>();
    store_importance(c, &query, ring, next, blocks);
    if (a.importance)
        zero_later_blocks(&a, &coord, g_imp);
}

/* ---------------------------------------------------------------- ranking */

enum {
    RANK_WARPS = 8, /* of a CUDA block, a row and kv head each */
    RANK_LOADS = 8  /* candidates of a lane that are loaded together */
};

/* Importance of this lane's candidates among the blocks from j0 on, every 32nd; -1 past the last.
 */
static __device__ __forceinline__ void load_candidates(float (&x)[RANK_LOADS], const float *g_row,
                                                       int last, int j0) {
#pragma unroll
    for (int k = 0; k < RANK_LOADS; k++) {
        const int j = j0 + k * WARP_SIZE + lane_id();
        x[k] = j <= last ? g_row[j] : -1;
    }
}

/* The lane's best candidate that is no NaN; 0 if it has none. */
static __device__ __forceinline__ sort_key best_of_lane(const dims *c, const float *g_row,
                                                        int own_block) {
    const int last = own_block - c->local;
    int best = 0;
    float x[RANK_LOADS], best_x = -1;
    for (int j0 = 0; j0 <= last; j0 += RANK_LOADS * WARP_SIZE) {
        load_candidates(x, g_row, last, j0);
#pragma unroll
        for (int k = 0; k < RANK_LOADS; k++) {
            const int j = j0 + k * WARP_SIZE + lane_id();
            const bool better = x[k] > best_x && j >= c->init;
            best_x = better ? x[k] : best_x;
            best = better ? j : best;
        }
    }
    return best_x < 0 ? 0 : candidate(c, own_block, best, best_x);
}

/* Block lists from importance (Eq. 11), N entries of the list a lane. Each lane's best candidate
 * comes first: if the list has p places, then no candidate below the p-th of those gets one, and
 * few are left that have to be inserted one by one. Grid: rows x kv heads / 8, a warp each. */
template <int N>
static __global__ void __launch_bounds__(RANK_WARPS *WARP_SIZE) rank_kernel(rank_args a) {
    __shared__ int s_list[RANK_WARPS][N * WARP_SIZE];
    const dims *c = &a.c;
    const int64_t i = (int64_t)blockIdx.x * RANK_WARPS + warp_id(), row = i / c->Hkv;
    const int t = row < a.rows ? a.t[row] : -1, own_block = t / c->lb, last = own_block - c->local;
    const float *g_row = a.importance + i * a.J;
    topk<N> best;
    if (t < 0)
        return;
    const int places = topk_of_row(&best, c, own_block);
    const sort_key least = key_at_place(best_of_lane(c, g_row, own_block), places - 1);
    const float least_x = importance_of_key(least);
    for (int j0 = 0; j0 <= last; j0 += RANK_LOADS * WARP_SIZE) {
        float x[RANK_LOADS];
        load_candidates(x, g_row, last, j0);
#pragma unroll
        for (int k = 0; k < RANK_LOADS; k++) {
            if (!__any_sync(ALL_LANES, !(x[k] < least_x))) /* NaN is not less: its key decides */
                continue;
            const sort_key key = candidate(c, own_block, j0 + k * WARP_SIZE + lane_id(), x[k]);
            topk_insert(&best, key >= least ? key : 0);
        }
    }
    topk_emit(&best, c, own_block, s_list[warp_id()], a.block_idx + i * c->n);
}

nsa_status rank_blocks(stage *st, const rank_args *a) {
    const unsigned blocks = (unsigned)((a->rows * a->c.Hkv + RANK_WARPS - 1) / RANK_WARPS);
    if (a->c.n <= WARP_SIZE)
        LAUNCH(rank_kernel<1>, blocks, RANK_WARPS * WARP_SIZE, 0, st, *a);
    else
        LAUNCH(rank_kernel<MAX_PER_LANE>, blocks, RANK_WARPS * WARP_SIZE, 0, st, *a);
    return NSA_OK;
}

/* ---------------------------------------------------------------- launches */

template <int DK> static size_t select_bytes(int queries, int ring) {
    return (size_t)(queries * TILE_ROWS + BLOCK) * DK * sizeof(bf16) +
           (size_t)queries * (STATS_ROW * sizeof(row_stats) + (size_t)ring * sizeof(float));
}

/* Queries of a CUDA block: as many as shared memory allows. */
template <int DK, int> static nsa_status open_select_width(stage *st) {
    st->select_queries = SELECT_QUERIES;
    while (st->select_queries > WARP_QUERIES &&
           select_bytes<DK>(st->select_queries, ring_size(&st->c)) > st->max_shared)
        st->select_queries /= 2;
    return nsa_allow_shared(importance_kernel<DK>);
}

nsa_status open_select(stage *st) {
    const nsa_config *c = &st->cfg;
    TRY(BY_WIDTH(&st->c, open_select_width, st));
    const int64_t tiles = st->plan->setup.max_rows / st->select_queries + c->max_seqs + 1;
    const int64_t tile = (c->seq_len + c->slc_block - 1) / c->slc_block * c->kv_heads *
                         st->select_queries; /* floats of a tile */
    int64_t batch = st->plan->setup.flags & NSA_DEBUG_MEMORY ? (int64_t)SHORT_BATCH_TILES
                                                             : MAX_BATCH_FLOATS / tile;
    batch = batch < 1 ? 1 : batch < tiles ? batch : tiles;
    st->batch_floats = batch * tile;
    alloc(st, &st->batch_importance, NSA_MEM_SCRATCH, st->batch_floats);
    open_table(st, &st->select_tiles, &st->host_select_tiles,
               st->plan->setup.max_rows + c->max_seqs);
    return NSA_OK;
}

nsa_status make_select_tiles(stage *st) {
    return make_tiles(st, st->select_queries, st->host_select_tiles, st->select_tiles,
                      &st->n_select_tiles);
}

template <int DK, int>
static nsa_status launch_importance(stage *st, const attend_args *a, const select_tiles *x) {
    const int queries = st->select_queries, ring = ring_size(&a->c);
    LAUNCH(importance_kernel<DK>, (unsigned)(x->count * a->c.Hkv), SELECT_WARPS * WARP_SIZE,
           select_bytes<DK>(queries, ring), st, *a, *x, queries, ring);
    return NSA_OK;
}

/* All rows, or as many at a time as the batch of importance holds. */
nsa_status select_blocks(stage *st, const attend_args *a) {
    const int64_t row = a->c.Hkv * a->J, tile = row * st->select_queries;
    const int64_t batch = a->importance ? st->n_select_tiles : st->batch_floats / (tile ? tile : 1);
    for (int64_t i = 0, left; i < st->n_select_tiles; i += batch) {
        left = st->n_select_tiles - i < batch ? st->n_select_tiles - i : batch;
        const row_range *tiles = st->host_select_tiles + i, *last = tiles + left - 1;
        const int64_t first = tiles->first;
        const select_tiles x = {st->select_tiles + i, left, first,
                                a->importance ? a->importance + first * row : st->batch_importance};
        const rank_args rank = {a->c,
                                a->row_t + first,
                                last->first + last->count - first,
                                x.importance,
                                a->J,
                                a->block_idx + first * a->c.Hkv * a->c.n};
        TRY(BY_WIDTH(&a->c, launch_importance, st, a, &x));
        if (!a->forced)
            TRY(rank_blocks(st, &rank));
    }
    return NSA_OK;
}
