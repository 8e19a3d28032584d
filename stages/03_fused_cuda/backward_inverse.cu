/** @file
 *  @brief Backward: the inverse lists, which name the query rows that see each block of keys, and
 *  how they are cut into work units.
 *
 *  Compressed and window: the rows that see a block are neighbours, a range. Selected: a list, made
 *  by a counting sort. Each chunk of rows counts its rows for every block, prefix sums give each
 *  chunk its offset in every block's list, and each chunk stores its rows in their order. So lists
 *  are ascending, and the same in every run. */
#include "backward.cuh"

/* The sequence that block `block` of a head belongs to: the last that begins at or before it. */
static __device__ int64_t sequence_of(const grad_args *a, int branch, int64_t block) {
    int64_t lo = 0, hi = a->B - 1;
    while (lo < hi) {
        const int64_t middle = (lo + hi + 1) / 2;
        if (a->seqs[middle].first[branch] <= block)
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
        if (a->row_seq[middle] < b || (a->row_seq[middle] == b && a->row_t[middle] < t))
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

/* One thread a block: the range of rows that see one of its keys. */
static __global__ void __launch_bounds__(256)
    find_row_ranges(const grad_args a, const inverse_list inv) {
    const dims *c = &a.c;
    const int64_t block = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (block >= inv.blocks)
        return;
    const int64_t b = sequence_of(&a, inv.branch, block % inv.stride);
    const sequence *sq = &a.seqs[b];
    const int64_t key = (block % inv.stride - sq->first[inv.branch]) * BLOCK;
    int64_t from = 0, to = 0; /* of positions */
    if (inv.branch == CMP && key < sq->n_cmp) {
        from = key * c->d + c->l - 1;
        to = sq->len;
    } else if (inv.branch == WIN && key < sq->len) {
        from = key;
        to = key + BLOCK - 1 + c->w < sq->len ? key + BLOCK - 1 + c->w : sq->len;
    }
    inv.start[block] = first_row_from(&a, b, from);
    inv.count[block] = from < to ? (int32_t)(first_row_from(&a, b, to) - inv.start[block]) : 0;
}

/* Invert one chunk of rows for one head, row after row; each lane has one entry of the row's list.
 * The first launch counts; the second, with `list`, stores each row. Grid (chunks, Hkv), one
 * warp. */
static __global__ void __launch_bounds__(WARP_SIZE)
    invert_chunk(const grad_args a, const inverse_list inv, int32_t *list) {
    const dims *c = &a.c;
    const int64_t h = blockIdx.y, from = blockIdx.x * inv.chunk;
    const int64_t to = from + inv.chunk < a.R ? from + inv.chunk : a.R;
    int32_t *chunk_counts = inv.chunk_counts + (h * gridDim.x + blockIdx.x) * inv.stride;
    for (int64_t r = from; r < to; r++) {
        const int32_t *idx = a.block_idx + (r * c->Hkv + h) * c->n;
        const int64_t first = a.seqs[a.row_seq[r]].first[SLC];
        const int t = a.row_t[r];
        for (int i = (int)threadIdx.x; i < c->n; i += WARP_SIZE) {
            if (idx[i] < 0)
                continue;
            const key_range visible = visible_block(c, idx[i], t);
            int block =
                visible.lo / BLOCK; /* the entry before has counted a block that both share */
            if (i > 0 && (visible_block(c, idx[i - 1], t).hi - 1) / BLOCK == block)
                block++;
            for (; block <= (visible.hi - 1) / BLOCK; block++) {
                const int32_t rank =
                    chunk_counts[first + block]++; /* no other lane has this block */
                if (list)
                    list[inv.start[h * inv.stride + first + block] + rank] = (int32_t)r;
            }
        }
        __syncwarp();
    }
}

/* One thread a block: prefix sum over the chunks, from counts to offsets. */
static __global__ void __launch_bounds__(256) scan_chunks(const inverse_list inv, int chunks) {
    const int64_t block = (int64_t)blockIdx.x * 256 + threadIdx.x;
    int32_t sum = 0;
    if (block >= inv.blocks)
        return;
    for (int chunk = 0; chunk < chunks; chunk++) {
        int32_t *count = inv.chunk_counts + (block / inv.stride * chunks + chunk) * inv.stride +
                         block % inv.stride;
        const int32_t rows = *count;
        *count = sum;
        sum += rows;
    }
    inv.count[block] = sum;
}

enum { SCAN_THREADS = 1024 }; /* of one CUDA block; each has a run of blocks */

/* Prefix sums over the blocks: first_unit and start, from count. One CUDA block. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan_blocks(const inverse_list inv) {
    __shared__ int64_t s_rows[SCAN_THREADS];
    __shared__ int64_t s_units[SCAN_THREADS];
    const int64_t run = (inv.blocks + SCAN_THREADS - 1) / SCAN_THREADS, from = threadIdx.x * run;
    const int64_t to = from + run < inv.blocks ? from + run : inv.blocks;
    int64_t rows = 0, units = 0;
    for (int64_t block = from; block < to; block++) {
        rows += inv.count[block];
        units += (inv.count[block] + inv.unit_rows - 1) / inv.unit_rows;
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
        units += (inv.count[block] + inv.unit_rows - 1) / inv.unit_rows;
    }
    if (threadIdx.x == SCAN_THREADS - 1)
        inv.first_unit[inv.blocks] = (int32_t)units;
}

/* ----------------------------------------------------------------- host */

/* Largest number of blocks that one row sees, in sequences of up to max_len tokens. */
static int64_t max_row_blocks(const stage *st, int branch, int64_t max_len) {
    const nsa_config *c = &st->cfg;
    const int64_t lb = c->slc_block, all = (max_len + BLOCK - 1) / BLOCK;
    const int64_t each = lb % BLOCK == 0 ? lb / BLOCK : BLOCK % lb == 0 ? 1 : (lb - 2) / BLOCK + 2;
    const int64_t some = branch == SLC ? c->slc_count * each : (c->window - 2 + BLOCK) / BLOCK + 1;
    if (branch == CMP)
        return (nsa_cmp_tokens(c, max_len) + BLOCK - 1) / BLOCK;
    return some < all ? some : all;
}

/* Rows of a unit, from the shape alone: enough to bound the number of units. */
static int64_t unit_size(int64_t rows) {
    const int64_t min_rows = (rows + MAX_EXTRA_UNITS - 1) / MAX_EXTRA_UNITS;
    return min_rows > MIN_UNIT_ROWS ? min_rows : (int64_t)MIN_UNIT_ROWS;
}

/* Units beyond one for each block, at most, if there are this many rows in all lists. */
static int64_t extra_units(int64_t rows) {
    return (rows / MIN_UNIT_ROWS < MAX_EXTRA_UNITS ? rows / MIN_UNIT_ROWS
                                                   : (int64_t)MAX_EXTRA_UNITS) +
           1;
}

nsa_status open_inverse_list(stage *st, scratch *s) {
    const nsa_config *c = &st->cfg;
    const int64_t R = st->plan->setup.max_rows, T = c->seq_len;
    inverse_list *inv = &s->inverse;
    int64_t blocks = 0, units = 0;
    for (int x = 0; x < BRANCHES; x++) {
        const int64_t of = c->kv_heads * st->in[x].stride;
        const int64_t all = of + extra_units(c->kv_heads * R * max_row_blocks(st, x, T));
        blocks = of > blocks ? of : blocks;
        units = all > units ? all : units;
    }
    inv->start = (int64_t *)device_alloc(st, NSA_MEM_SCRATCH, blocks, sizeof *inv->start);
    inv->count = (int32_t *)device_alloc(st, NSA_MEM_SCRATCH, blocks, sizeof *inv->count);
    inv->first_unit =
        (int32_t *)device_alloc(st, NSA_MEM_SCRATCH, blocks + 1, sizeof *inv->first_unit);
    s->list = (int32_t *)device_alloc(
        st, NSA_MEM_SCRATCH, c->kv_heads * R * max_row_blocks(st, SLC, T), sizeof *s->list);
    inv->chunk_counts =
        (int32_t *)device_alloc(st, NSA_MEM_SCRATCH, LIST_CHUNKS * c->kv_heads * st->in[SLC].stride,
                                sizeof *inv->chunk_counts);
    inv->partial = (real *)device_alloc(
        st, NSA_MEM_SCRATCH, units * BLOCK * (st->c.dkp + st->c.dvp), sizeof *inv->partial);
    return NSA_OK;
}

/* Inverse lists of the selected branch. */
static nsa_status invert_selected(stage *st, const grad_args *args, inverse_list *inv) {
    const int64_t chunk = (args->R + LIST_CHUNKS - 1) / LIST_CHUNKS;
    inv->chunk = chunk > WARP_SIZE ? chunk : (int64_t)WARP_SIZE;
    const int chunks = (int)((args->R + inv->chunk - 1) / inv->chunk);
    const dim3 grid((unsigned)chunks, (unsigned)args->c.Hkv);
    NSA_CUDA(cudaMemsetAsync(inv->chunk_counts, 0,
                             (size_t)(chunks * inv->blocks) * sizeof *inv->chunk_counts,
                             st->stream));
    NSA_LAUNCH(invert_chunk, grid, WARP_SIZE, 0, st->stream, *args, *inv, (int32_t *)NULL);
    NSA_LAUNCHED("invert_chunk");
    NSA_LAUNCH(scan_chunks, (unsigned)((inv->blocks + 255) / 256), 256, 0, st->stream, *inv,
               chunks);
    NSA_LAUNCHED("scan_chunks");
    NSA_LAUNCH(scan_blocks, 1, SCAN_THREADS, 0, st->stream, *inv);
    NSA_LAUNCHED("scan_blocks");
    NSA_LAUNCH(invert_chunk, grid, WARP_SIZE, 0, st->stream, *args, *inv, inv->list);
    NSA_LAUNCHED("invert_chunk");
    return NSA_OK;
}

/* Build the inverse list of a branch and its units. */
nsa_status build_inverse_list(stage *st, const grad_args *args, int branch, inverse_list *inv) {
    const scratch *s = (const scratch *)st->scratch;
    int64_t max_len = 0;
    for (int64_t b = 0; b < st->batch.B; b++) {
        const int64_t len = st->batch.seq[b + 1] - st->batch.seq[b];
        max_len = len > max_len ? len : max_len;
    }
    const int64_t rows = args->c.Hkv * args->R * max_row_blocks(st, branch, max_len);
    *inv = s->inverse;
    inv->branch = branch;
    inv->stride = args->in[branch].stride;
    inv->blocks = args->c.Hkv * inv->stride;
    inv->unit_rows = unit_size(rows);
    inv->max_extra_units = extra_units(rows);
    inv->list = branch == SLC ? s->list : NULL;
    if (branch == SLC)
        return invert_selected(st, args, inv);
    NSA_LAUNCH(find_row_ranges, (unsigned)((inv->blocks + 255) / 256), 256, 0, st->stream, *args,
               *inv);
    NSA_LAUNCHED("find_row_ranges");
    NSA_LAUNCH(scan_blocks, 1, SCAN_THREADS, 0, st->stream, *inv);
    NSA_LAUNCHED("scan_blocks");
    return NSA_OK;
}
