/** @file
 *  @brief Backward: the inverse lists, which name the query rows that see each block of keys, and
 *  how they are cut into work units.
 *
 *  Compressed and window: the rows that see a block are neighbours, a range. Selected: a list, made
 *  by a counting sort. Each chunk of rows counts its rows for every block; prefix sums give each
 *  chunk its offset in every block's list; each chunk stores its rows in their order. So lists are
 *  ascending, and the same in every run. */
#include "backward.cuh"

enum { SCAN_THREADS = 1024 }; /* of scan_blocks: one CUDA block, each thread has a run of blocks */

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

/* The range of rows that see a key of a compressed or window block: start and count. */
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
    inv->start[block] = first_row_from(a, b, from);
    inv->count[block] = from < to ? (int32_t)(first_row_from(a, b, to) - inv->start[block]) : 0;
}

/* Prefix sum over the chunks of one block, from counts to offsets; the sum is the block's count. */
static __device__ void scan_chunks(const inverse_list *inv, int64_t block) {
    int32_t sum = 0;
    for (int64_t chunk = 0; chunk < inv->chunks; chunk++) {
        int32_t *count = inv->chunk_counts +
                         (block / inv->stride * inv->chunks + chunk) * inv->stride +
                         block % inv->stride;
        const int32_t rows = *count;
        *count = sum;
        sum += rows;
    }
    inv->count[block] = sum;
}

/* Invert one chunk of rows for one head, row after row; each lane has one entry of the row's list.
 * Without STORE it counts; with it, it stores each row. Grid (chunks, Hkv), one warp. */
template <bool STORE>
static __global__ void __launch_bounds__(WARP_SIZE) invert_chunk(grad_args a, inverse_list inv) {
    const dims *c = &a.f.c;
    const int64_t h = blockIdx.y, from = blockIdx.x * inv.chunk, to = min(from + inv.chunk, a.R);
    int32_t *chunk_counts = inv.chunk_counts + (h * inv.chunks + blockIdx.x) * inv.stride;
    for (int64_t r = from; r < to; r++) {
        const int32_t *idx = a.f.block_idx + (r * c->Hkv + h) * c->n;
        const int64_t first = a.f.seqs[a.f.row_seq[r]].first_block[SLC];
        const int t = a.f.row_t[r];
        for (int i = lane_id(); i < c->n && idx[i] >= 0; i += WARP_SIZE) {
            int block = idx[i] * c->lb / BLOCK;
            const int last = min(idx[i] * c->lb + c->lb - 1, t) / BLOCK;
            if (i > 0 && (idx[i - 1] * c->lb + c->lb - 1) / BLOCK == block)
                block++; /* the entry before has counted a block that both share */
            for (; block <= last; block++) { /* no other lane has this block */
                const int32_t rank = chunk_counts[first + block]++;
                if (STORE)
                    inv.list[inv.start[h * inv.stride + first + block] + rank] = (int32_t)r;
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
    for (int64_t block = from; block < to; block++) {
        if (inv.list)
            scan_chunks(&inv, block);
        else
            find_rows(&a, &inv, block);
        rows += inv.count[block];
        units += units_of(&inv, inv.count[block]);
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
        units += units_of(&inv, inv.count[block]);
    }
}

/* ----------------------------------------------------------------- host */

/* Number of blocks that a row at position t sees, at most. A run of k keys that may begin at any
 * key lies in (k - 2) / BLOCK + 2 blocks at most. */
static int64_t row_blocks(const stage *st, int branch, int64_t t) {
    const nsa_config *c = &st->cfg;
    const int64_t all = t / BLOCK + 1, window = (c->window - 2 + BLOCK) / BLOCK + 1;
    const int64_t some = branch == SLC ? c->slc_count * st->c.each : window;
    if (branch == CMP)
        return (nsa_cmp_tokens(c, t + 1) + BLOCK - 1) / BLOCK;
    return some < all ? some : all;
}

/* Rows of a unit, from the shape alone: enough to bound the number of units. */
static int64_t unit_size(int64_t rows) {
    const int64_t min_rows = (rows + MAX_EXTRA_UNITS - 1) / MAX_EXTRA_UNITS;
    return min_rows > MIN_UNIT_ROWS ? min_rows : (int64_t)MIN_UNIT_ROWS;
}

void open_inverse_list(stage *st, scratch *s) {
    const nsa_config *c = &st->cfg;
    const int64_t R = st->plan->setup.max_rows, T = c->seq_len;
    inverse_list *inv = &s->inverse;
    int64_t blocks = 0, units = 0;
    for (int x = 0; x < BRANCHES; x++) {
        const int64_t of = c->kv_heads * st->in[x].stride;
        const int64_t rows = c->kv_heads * R * row_blocks(st, x, T - 1);
        const int64_t all = of + rows / unit_size(rows); /* each may leave one unfilled */
        blocks = of > blocks ? of : blocks;
        units = all > units ? all : units;
    }
    alloc(st, &inv->start, NSA_MEM_SCRATCH, blocks);
    alloc(st, &inv->count, NSA_MEM_SCRATCH, blocks);
    alloc(st, &inv->first_unit, NSA_MEM_SCRATCH, blocks);
    alloc(st, &s->list, NSA_MEM_SCRATCH, c->kv_heads * R * row_blocks(st, SLC, T - 1));
    alloc(st, &inv->chunk_counts, NSA_MEM_SCRATCH, LIST_CHUNKS * c->kv_heads * st->in[SLC].stride);
    alloc(st, &inv->partial, NSA_MEM_SCRATCH, units * 2 * BLOCK * st->c.wp);
}

nsa_status build_inverse_list(stage *st, const grad_args *args, int branch, inverse_list *inv) {
    const dims *c = &args->f.c;
    int64_t max_len = 0;
    for (int64_t b = 0; b < args->B; b++)
        max_len = st->host_seqs[b].len > max_len ? st->host_seqs[b].len : max_len;
    const int64_t rows_of_block = branch == WIN && c->w < max_len - BLOCK ? c->w + BLOCK : max_len;
    const int64_t chunk = (args->R + LIST_CHUNKS - 1) / LIST_CHUNKS;
    *inv = ((const scratch *)st->scratch)->inverse;
    inv->branch = branch;
    inv->stride = args->f.in[branch].stride;
    inv->blocks = c->Hkv * inv->stride;
    inv->unit_rows = unit_size(c->Hkv * args->R * row_blocks(st, branch, max_len - 1));
    inv->max_units = units_of(inv, rows_of_block);
    inv->list = branch == SLC ? ((const scratch *)st->scratch)->list : NULL;
    inv->chunk = chunk > WARP_SIZE ? chunk : (int64_t)WARP_SIZE;
    inv->chunks = (args->R + inv->chunk - 1) / inv->chunk;
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
