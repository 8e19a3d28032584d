/** @file
 *  @brief Backward: the inverse lists, which name the query rows that see each block of keys, and
 *  how they are cut into work units.
 *
 *  Compressed and window: the rows that see a block are neighbours, a range. Selected: a list, made
 *  by a counting sort. Each chunk of rows counts its rows for every block; prefix sums give each
 *  chunk its offset in every block's list; each chunk stores its rows in their order. So lists are
 *  ascending, and the same in every run. Rows come in slices whose dS fits into memory; a listed
 * row has its place there with it. */
#include "backward.cuh"

enum {
    SCAN_THREADS = 1024, /* of scan_blocks: one CUDA block, each thread has a run of blocks */
    SCAN_BATCH = 16      /* chunks whose counts a thread loads at a time */
};

/* The sequence that block `block` of a head belongs to: the last that begins at or before it. */
static __device__ int64_t sequence_of(const grad_args *a, int branch, int64_t block) {
    int64_t lo = 0, hi = a->B - 1;
    while (lo < hi) {
        const int64_t middle = (lo + hi + 1) / 2;
        if (a->f.seqs[middle].first_block[branch] <= block)
            lo = middle;
        else
            hi = middle - 1;
    }
    return lo;
}

/* The first row of sequence b at position t or later. */
static __device__ int64_t first_row_from(const grad_args *a, int64_t b, int64_t t) {
    int64_t lo = 0, hi = a->R;
    while (lo < hi) {
        const int64_t middle = (lo + hi) / 2;
        if (a->f.row_seq[middle] < b || (a->f.row_seq[middle] == b && a->f.row_t[middle] < t))
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

/* The range of the slice's rows that see a key of a compressed or window block. */
static __device__ void find_rows(const grad_args *a, const inverse_list *inv, int64_t block) {
    const dims *c = &a->f.c;
    const int64_t b = sequence_of(a, inv->branch, block % inv->stride);
    const sequence *sq = &a->f.seqs[b];
    const int64_t key = (block % inv->stride - sq->first_block[inv->branch]) * BLOCK;
    int64_t from = 0, to = 0; /* of positions */
    if (inv->branch == CMP && key < sq->n_cmp) {
        from = key * c->d + c->l - 1;
        to = sq->len;
    } else if (inv->branch == WIN && key < sq->len) {
        from = key;
        to = min(key + BLOCK - 1 + c->w, sq->len);
    }
    const int64_t start = max(first_row_from(a, b, from), inv->first_row);
    const int64_t end = min(first_row_from(a, b, to), inv->end_row);
    inv->start[block] = start;
    inv->count[block] = from < to && start < end ? (int32_t)(end - start) : 0;
}

/* Prefix sum over the chunks of one block, from counts to offsets; the sum is the block's count.
 * Counts are loaded SCAN_BATCH at a time: a load after a store would wait for it. */
static __device__ void scan_chunks(const inverse_list *inv, int64_t block) {
    int32_t *counts =
        inv->chunk_counts + block / inv->stride * inv->chunks * inv->stride + block % inv->stride;
    int32_t sum = 0;
    for (int64_t chunk = 0; chunk < inv->chunks; chunk += SCAN_BATCH) {
        int32_t rows[SCAN_BATCH];
#pragma unroll
        for (int i = 0; i < SCAN_BATCH; i++)
            rows[i] = chunk + i < inv->chunks ? counts[(chunk + i) * inv->stride] : 0;
#pragma unroll
        for (int i = 0; i < SCAN_BATCH; i++) {
            if (chunk + i < inv->chunks)
                counts[(chunk + i) * inv->stride] = sum;
            sum += rows[i];
        }
    }
    inv->count[block] = sum;
}

/* Invert one chunk of rows for one head, row after row; each lane has one entry of the row's list.
 * Without STORE it counts; with it, it stores each row. Grid (chunks, Hkv), one warp. */
template <bool STORE>
static __global__ void __launch_bounds__(WARP_SIZE) invert_chunk(grad_args a, inverse_list inv) {
    const dims *c = &a.f.c;
    const int64_t h = blockIdx.y, from = inv.first_row + blockIdx.x * inv.chunk;
    const int64_t to = min(from + inv.chunk, inv.end_row);
    int32_t *chunk_counts = inv.chunk_counts + (h * inv.chunks + blockIdx.x) * inv.stride;
    for (int64_t r = from; r < to; r++) {
        const int32_t *idx = a.f.block_idx + (r * c->Hkv + h) * c->n;
        const int64_t first = a.f.seqs[a.f.row_seq[r]].first_block[SLC];
        const int t = a.f.row_t[r];
        for (int i = lane_id(); i < c->n && idx[i] >= 0; i += WARP_SIZE) {
            const int first_block = idx[i] * c->lb / BLOCK;
            int block = first_block;
            const int last = min(idx[i] * c->lb + c->lb - 1, t) / BLOCK;
            if (i > 0 && (idx[i - 1] * c->lb + c->lb - 1) / BLOCK == block)
                block++; /* the entry before, which of all reaches farthest, has counted it */
            for (; block <= last; block++) { /* no other lane has this block */
                const int32_t rank = chunk_counts[first + block]++;
                if (STORE)
                    inv.list[inv.start[h * inv.stride + first + block] + rank] = {
                        (int32_t)r, selected_place(c, i, block - first_block)};
            }
        }
        __syncwarp();
    }
}

/* Number of rows of each block, and prefix sums over the blocks: first_unit, and start of a list.
 * Grid: one CUDA block. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan_blocks(grad_args a, inverse_list inv) {
    __shared__ int64_t s_rows[SCAN_THREADS];
    __shared__ int64_t s_units[SCAN_THREADS];
    const int64_t run = (inv.blocks + SCAN_THREADS - 1) / SCAN_THREADS, from = threadIdx.x * run;
    const int64_t to = min(from + run, inv.blocks);
    int64_t rows = 0, units = 0;
    for (int64_t block = threadIdx.x; block < inv.blocks; block += SCAN_THREADS) {
        if (inv.list)
            scan_chunks(&inv, block);
        else
            find_rows(&a, &inv, block);
    }
    __syncthreads();
    for (int64_t block = from; block < to; block++) {
        rows += inv.count[block];
        units += units_of(inv.count[block]);
    }
    s_rows[threadIdx.x] = rows;
    s_units[threadIdx.x] = units;
    __syncthreads();
    rows = units = 0;
    for (int i = 0; i < (int)threadIdx.x; i++) {
        rows += s_rows[i];
        units += s_units[i];
    }
    for (int64_t block = from; block < to; block++) {
        inv.first_unit[block] = (int32_t)units;
        if (inv.list)
            inv.start[block] = rows;
        rows += inv.count[block];
        units += units_of(inv.count[block]);
    }
}

/* ----------------------------------------------------------------- host */

/* Number of blocks that a row at position t sees, at most: the tiles of dS that it needs. A run of
 * k keys that may begin at any key lies in (k - 2) / BLOCK + 2 blocks at most. */
static int64_t row_blocks(const stage *st, int branch, int64_t t) {
    const nsa_config *c = &st->cfg;
    const int64_t all = t / BLOCK + 1, window = (c->window - 2 + BLOCK) / BLOCK + 1;
    if (branch == CMP)
        return (nsa_cmp_tokens(c, t + 1) + BLOCK - 1) / BLOCK;
    return branch == SLC ? c->slc_count * st->c.each : window < all ? window : all;
}

/* The slice that begins with row inv->first_row: its end, and the width of its dS. Where there are
 * enough, its rows are a multiple of a unit's. */
static void find_slice(const stage *st, int64_t R, inverse_list *inv) {
    const scratch *s = (const scratch *)st->scratch;
    int64_t end = inv->first_row, width = 1;
    for (; end < R; end++) {
        const int64_t blocks = row_blocks(st, inv->branch, st->host_rows[end]);
        const int64_t wider = blocks > width ? blocks : width;
        if ((end + 1 - inv->first_row) * st->c.Hkv * st->c.GT * wider > s->ds_tiles)
            break;
        width = wider;
    }
    const int64_t rest = (end - inv->first_row) % UNIT_ROWS;
    inv->end_row = end == R || end - rest == inv->first_row ? end : end - rest;
    inv->width = (int)width;
}

void open_inverse_list(stage *st, scratch *s) {
    const nsa_config *c = &st->cfg;
    const int64_t R = st->plan->setup.max_rows, row_tiles = c->kv_heads * st->c.GT;
    inverse_list *inv = &s->inverse;
    int64_t blocks = 0, width = 1;
    for (int x = 0; x < BRANCHES; x++) {
        const int64_t of = c->kv_heads * st->in[x].stride, row = row_blocks(st, x, c->seq_len - 1);
        blocks = of > blocks ? of : blocks;
        width = row > width ? row : width;
    }
    /* of all rows, if that is not too much; of one row at least */
    const int64_t all = R * row_tiles * width;
    const int64_t most = st->plan->setup.flags & NSA_DEBUG_MEMORY ? SHORT_DS_TILES : DS_TILES;
    s->ds_tiles = all < most ? all : most > row_tiles * width ? most : row_tiles * width;
    alloc(st, &s->ds, NSA_MEM_SCRATCH, s->ds_tiles * DS_TILE);
    alloc(st, &inv->start, NSA_MEM_SCRATCH, blocks);
    alloc(st, &inv->count, NSA_MEM_SCRATCH, blocks);
    alloc(st, &inv->first_unit, NSA_MEM_SCRATCH, blocks);
    alloc(st, &s->list, NSA_MEM_SCRATCH, s->ds_tiles / st->c.GT);
    alloc(st, &inv->chunk_counts, NSA_MEM_SCRATCH, LIST_CHUNKS * c->kv_heads * st->in[SLC].stride);
    /* each block may leave one unit unfilled */
    alloc(st, &inv->partial, NSA_MEM_SCRATCH,
          (blocks + s->ds_tiles / st->c.GT / UNIT_ROWS) * 2 * BLOCK * st->c.wp);
}

nsa_status build_inverse_list(stage *st, const grad_args *args, int branch, int64_t first,
                              inverse_list *inv) {
    const dims *c = &args->f.c;
    *inv = ((const scratch *)st->scratch)->inverse;
    inv->branch = branch;
    inv->first_row = first;
    find_slice(st, args->R, inv);
    const int64_t rows = inv->end_row - first, chunk = (rows + LIST_CHUNKS - 1) / LIST_CHUNKS;
    inv->stride = args->f.in[branch].stride;
    inv->blocks = c->Hkv * inv->stride;
    inv->waves = units_of(branch == WIN && c->w < rows - BLOCK ? c->w + BLOCK : rows);
    inv->list = branch == SLC ? ((const scratch *)st->scratch)->list : NULL;
    inv->chunk = chunk > WARP_SIZE ? chunk : (int64_t)WARP_SIZE;
    inv->chunks = (rows + inv->chunk - 1) / inv->chunk;
    const dim3 grid((unsigned)inv->chunks, (unsigned)c->Hkv);
    if (inv->list) {
        TRY(zero(st, inv->chunk_counts, inv->chunks * inv->blocks));
        LAUNCH(invert_chunk<false>, grid, WARP_SIZE, 0, st, *args, *inv);
    }
    LAUNCH(scan_blocks, 1, SCAN_THREADS, 0, st, *args, *inv);
    if (inv->list)
        LAUNCH(invert_chunk<true>, grid, WARP_SIZE, 0, st, *args, *inv);
    return NSA_OK;
}
