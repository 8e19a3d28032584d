/** @file
 *  @brief Backward: which query rows visit each block of keys, and how they are cut into units.
 *
 *  Compressed and window: the rows that see a block are neighbours, a range. Selected: a list, made
 *  by counting: each chunk of rows counts its visits of every block, prefix sums give each chunk
 * its places in every block's part of the list, and each chunk fills them in the order of its rows.
 * So lists are ascending, and the same in every run. */
#include "backward.cuh"

/* The sequence that block `at` of a head belongs to: the last that begins at or before it. */
static __device__ int64_t sequence_of(const grad_args *a, int branch, int64_t at) {
    int64_t lo = 0, hi = a->B - 1;
    while (lo < hi) {
        const int64_t middle = (lo + hi + 1) / 2;
        if (a->seqs[middle].first[branch] <= at)
            lo = middle;
        else
            hi = middle - 1;
    }
    return lo;
}

/* The first row at or after position t of sequence b. */
static __device__ int64_t row_at(const grad_args *a, int64_t b, int64_t t) {
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

/* A thread a block: the rows that may see one of its keys, by its first and last. */
static __global__ void __launch_bounds__(256) count_range(const grad_args a, const visit_args v) {
    const dims *c = &a.c;
    const int64_t block = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (block >= v.blocks)
        return;
    const int64_t b = sequence_of(&a, v.branch, block % v.stride);
    const sequence *sq = &a.seqs[b];
    const int64_t key = (block % v.stride - sq->first[v.branch]) * BLOCK;
    int64_t from = 0, to = 0; /* positions */
    if (v.branch == CMP && key < sq->n_cmp) {
        from = key * c->d + c->l - 1;
        to = sq->len;
    } else if (v.branch == WIN && key < sq->len) {
        from = key;
        to = key + BLOCK - 1 + c->w < sq->len ? key + BLOCK - 1 + c->w : sq->len;
    }
    v.start[block] = row_at(&a, b, from);
    v.count[block] = from < to ? (int32_t)(row_at(&a, b, to) - v.start[block]) : 0;
}

/* The visits of one chunk of rows to one head's blocks, row after row; a lane has one entry of the
 * row's list. First to be counted; then, with `list`, each to its place. Grid (chunks, Hkv), 1
 * warp. */
static __global__ void __launch_bounds__(WARP)
    list_chunk(const grad_args a, const visit_args v, int32_t *list) {
    const dims *c = &a.c;
    const int64_t h = blockIdx.y, from = blockIdx.x * v.chunk;
    const int64_t to = from + v.chunk < a.R ? from + v.chunk : a.R;
    int32_t *counted = v.counted + (h * gridDim.x + blockIdx.x) * v.stride;
    for (int64_t r = from; r < to; r++) {
        const int32_t *idx = a.block_idx + (r * c->Hkv + h) * c->n;
        const int64_t first = a.seqs[a.row_seq[r]].first[SLC];
        const int t = a.row_t[r];
        for (int i = (int)threadIdx.x; i < c->n; i += WARP) {
            if (idx[i] < 0)
                continue;
            const key_range seen = seen_block(c, idx[i], t);
            int block = seen.lo / BLOCK; /* a block that the entry before ends in is its */
            if (i > 0 && (seen_block(c, idx[i - 1], t).hi - 1) / BLOCK == block)
                block++;
            for (; block <= (seen.hi - 1) / BLOCK; block++) {
                const int32_t at = counted[first + block]++; /* no other lane has this block */
                if (list)
                    list[v.start[h * v.stride + first + block] + at] = (int32_t)r;
            }
        }
        __syncwarp();
    }
}

/* A thread a block: from each chunk's visits to where its first one goes. */
static __global__ void __launch_bounds__(256) add_chunks(const visit_args v, int chunks) {
    const int64_t block = (int64_t)blockIdx.x * 256 + threadIdx.x;
    int32_t sum = 0;
    if (block >= v.blocks)
        return;
    for (int chunk = 0; chunk < chunks; chunk++) {
        int32_t *at = v.counted + (block / v.stride * chunks + chunk) * v.stride + block % v.stride;
        const int32_t visits = *at;
        *at = sum;
        sum += visits;
    }
    v.count[block] = sum;
}

enum { SCAN = 1024 }; /* threads, each with a run of blocks */

/* first_unit, and start in the list, from count. One CUDA block. */
static __global__ void __launch_bounds__(SCAN) add_blocks(const visit_args v) {
    __shared__ int64_t s_visits[SCAN];
    __shared__ int64_t s_units[SCAN];
    const int64_t run = (v.blocks + SCAN - 1) / SCAN, from = threadIdx.x * run;
    const int64_t to = from + run < v.blocks ? from + run : v.blocks;
    int64_t visits = 0, units = 0;
    for (int64_t block = from; block < to; block++) {
        visits += v.count[block];
        units += (v.count[block] + v.most - 1) / v.most;
    }
    s_visits[threadIdx.x] = visits;
    s_units[threadIdx.x] = units;
    __syncthreads();
    visits = units = 0;
    for (int i = 0; i < (int)threadIdx.x; i++) {
        visits += s_visits[i];
        units += s_units[i];
    }
    for (int64_t block = from; block < to; block++) {
        v.first_unit[block] = (int32_t)units;
        if (v.list)
            v.start[block] = visits;
        visits += v.count[block];
        units += (v.count[block] + v.most - 1) / v.most;
    }
    if (threadIdx.x == SCAN - 1)
        v.first_unit[v.blocks] = (int32_t)units;
}

/* ----------------------------------------------------------------- host */

/* Blocks that one row visits at the most, in sequences of up to `longest` tokens. */
static int64_t most_blocks(const stage *st, int branch, int64_t longest) {
    const nsa_config *c = &st->cfg;
    const int64_t lb = c->slc_block, all = (longest + BLOCK - 1) / BLOCK;
    const int64_t each = lb % BLOCK == 0 ? lb / BLOCK : BLOCK % lb == 0 ? 1 : (lb - 2) / BLOCK + 2;
    const int64_t some = branch == SLC ? c->slc_count * each : (c->window - 2 + BLOCK) / BLOCK + 1;
    if (branch == CMP)
        return (nsa_cmp_tokens(c, longest) + BLOCK - 1) / BLOCK;
    return some < all ? some : all;
}

/* Visits of a unit, by the shape alone: as few units as bound their partial sums. */
static int64_t unit_size(int64_t visits) {
    const int64_t least = (visits + MOST_UNITS - 1) / MOST_UNITS;
    return least > LEAST_VISITS ? least : (int64_t)LEAST_VISITS;
}

/* Units beyond one for each block, at most, of this many visits or fewer. */
static int64_t more_units(int64_t visits) {
    return (visits / LEAST_VISITS < MOST_UNITS ? visits / LEAST_VISITS : (int64_t)MOST_UNITS) + 1;
}

nsa_status open_visits(stage *st, scratch *s) {
    const nsa_config *c = &st->cfg;
    const int64_t R = st->plan->setup.max_rows, T = c->seq_len;
    visit_args *v = &s->visits;
    int64_t blocks = 0, units = 0;
    for (int x = 0; x < BRANCHES; x++) {
        const int64_t of = c->kv_heads * st->in[x].stride;
        const int64_t all = of + more_units(c->kv_heads * R * most_blocks(st, x, T));
        blocks = of > blocks ? of : blocks;
        units = all > units ? all : units;
    }
    v->start = (int64_t *)take_device(st, NSA_MEM_SCRATCH, blocks, sizeof *v->start);
    v->count = (int32_t *)take_device(st, NSA_MEM_SCRATCH, blocks, sizeof *v->count);
    v->first_unit = (int32_t *)take_device(st, NSA_MEM_SCRATCH, blocks + 1, sizeof *v->first_unit);
    s->list = (int32_t *)take_device(st, NSA_MEM_SCRATCH, c->kv_heads * R * most_blocks(st, SLC, T),
                                     sizeof *s->list);
    v->counted = (int32_t *)take_device(
        st, NSA_MEM_SCRATCH, LIST_CHUNKS * c->kv_heads * st->in[SLC].stride, sizeof *v->counted);
    v->partial = (real *)take_device(st, NSA_MEM_SCRATCH, units * BLOCK * (st->c.dkp + st->c.dvp),
                                     sizeof *v->partial);
    return NSA_OK;
}

/* The selected branch's lists. */
static nsa_status list_selected(stage *st, const grad_args *args, visit_args *v) {
    const int64_t chunk = (args->R + LIST_CHUNKS - 1) / LIST_CHUNKS;
    v->chunk = chunk > WARP ? chunk : (int64_t)WARP;
    const int chunks = (int)((args->R + v->chunk - 1) / v->chunk);
    const dim3 grid((unsigned)chunks, (unsigned)args->c.Hkv);
    NSA_CUDA(cudaMemsetAsync(v->counted, 0, (size_t)(chunks * v->blocks) * sizeof *v->counted,
                             st->stream));
    NSA_LAUNCH(list_chunk, grid, WARP, 0, st->stream, *args, *v, (int32_t *)NULL);
    NSA_LAUNCHED("list_chunk");
    NSA_LAUNCH(add_chunks, (unsigned)((v->blocks + 255) / 256), 256, 0, st->stream, *v, chunks);
    NSA_LAUNCHED("add_chunks");
    NSA_LAUNCH(add_blocks, 1, SCAN, 0, st->stream, *v);
    NSA_LAUNCHED("add_blocks");
    NSA_LAUNCH(list_chunk, grid, WARP, 0, st->stream, *args, *v, v->list);
    NSA_LAUNCHED("list_chunk");
    return NSA_OK;
}

/* Who visits which block of a branch, and in which units: into *v. */
nsa_status list_visits(stage *st, const grad_args *args, int branch, visit_args *v) {
    const scratch *s = (const scratch *)st->scratch;
    int64_t longest = 0;
    for (int64_t b = 0; b < st->batch.B; b++) {
        const int64_t len = st->batch.seq[b + 1] - st->batch.seq[b];
        longest = len > longest ? len : longest;
    }
    const int64_t visits = args->c.Hkv * args->R * most_blocks(st, branch, longest);
    *v = s->visits;
    v->branch = branch;
    v->stride = args->in[branch].stride;
    v->blocks = args->c.Hkv * v->stride;
    v->most = unit_size(visits);
    v->most_units = more_units(visits);
    v->list = branch == SLC ? s->list : NULL;
    if (branch == SLC)
        return list_selected(st, args, v);
    NSA_LAUNCH(count_range, (unsigned)((v->blocks + 255) / 256), 256, 0, st->stream, *args, *v);
    NSA_LAUNCHED("count_range");
    NSA_LAUNCH(add_blocks, 1, SCAN, 0, st->stream, *v);
    NSA_LAUNCHED("add_blocks");
    return NSA_OK;
}
