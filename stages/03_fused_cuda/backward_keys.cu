/** @file
 *  @brief Backward by keys: dk and dv of a block, from all rows that see it.
 *
 *  The warps are specialised. All four products of a step take equally long, so a quarter of the
 *  warps computes each of them, at different steps: while some make P of step i, others make dS of
 *  step i-1 from its P, and the rest add P^T dO of step i-1 to dv and dS^T Q of step i-2 to dk. So
 *  the multiply-adds of one product fill the gaps of another, and the warps meet at one barrier a
 *  step. */
#include "backward.cuh"

/* A work unit: row tiles that see one block of one head. */
typedef struct work_unit {
    int64_t block;
    int64_t begin;  /* its first tile among all of the block's */
    int count;      /* number of tiles */
    int step_tiles; /* tiles in one step */
} work_unit;

/* What the warps of a CUDA block share about a step, in shared memory: registers are scarce. */
typedef struct step_info {
    work_unit unit;
    int64_t tile[RING][MAX_STEP_TILES];  /* row tiles of a step, at step % RING */
    uint64_t mask[RING][MAX_STEP_TILES]; /* keys of the block that each sees */
} step_info;

/* Mask of the keys of block `seq_block` of its sequence that position t sees through the list idx
 * [n]. The lanes search the list together. */
static __device__ uint64_t selected_mask(const dims *c, const int32_t *idx, int seq_block, int t) {
    uint64_t mask = 0;
    for (int i = (int)threadIdx.x % WARP_SIZE; i < c->n && idx[i] >= 0; i += WARP_SIZE) {
        const key_range visible = visible_block(c, idx[i], t);
        mask |= key_mask(visible.lo, visible.hi, seq_block * BLOCK);
    }
    __syncwarp();
    for (int other = 1; other < WARP_SIZE; other *= 2)
        mask |= __shfl_xor_sync(0xffffffffu, (unsigned long long)mask, other);
    return mask;
}

/* Load the tiles of step i of the unit, and their masks; warp `warp` of `warps` loads its share.
 * Tiles past the end get an empty mask and the last tile's number. */
static __device__ void load_indices(const grad_args *a, const inverse_list *inv, int i,
                                    step_info *s_info, int warp, int warps) {
    const dims *c = &a->c;
    const work_unit *unit = &s_info->unit;
    const int first = i * unit->step_tiles;
    if (first >= unit->count)
        return;
    for (int k = warp; k < unit->step_tiles; k += warps) {
        const bool valid = first + k < unit->count;
        const int64_t entry = unit->begin + (valid ? first + k : unit->count - 1);
        int64_t r = inv->start[unit->block] + entry / c->GT;
        if (inv->list)
            r = inv->list[r];
        const int64_t pair = r * c->Hkv + unit->block / inv->stride;
        const int t = a->row_t[r];
        const int seq_block =
            (int)(unit->block % inv->stride - a->seqs[a->row_seq[r]].first[inv->branch]);
        uint64_t mask = 0;
        if (inv->branch == SLC) {
            mask = selected_mask(c, a->block_idx + pair * c->n, seq_block, t);
        } else {
            const key_range visible = visible_range(c, inv->branch, t);
            mask = key_mask(visible.lo, visible.hi, seq_block * BLOCK);
        }
        if (threadIdx.x % WARP_SIZE == 0) {
            s_info->tile[i % RING][k] = pair * c->GT + entry % c->GT;
            s_info->mask[i % RING][k] = valid ? mask : 0;
        }
    }
}

/* Number of tiles of step i; 0 if there is no such step. */
static __device__ __forceinline__ int tiles_of(const step_info *s_info, int i) {
    const work_unit *unit = &s_info->unit;
    const int left = unit->count - i * unit->step_tiles;
    return i < 0 || left <= 0 ? 0 : left < unit->step_tiles ? left : unit->step_tiles;
}

/* The block that a unit belongs to: the last whose units begin at or before it. */
static __device__ int64_t block_of_unit(const inverse_list *inv, int64_t unit) {
    int64_t lo = 0, hi = inv->blocks - 1;
    while (lo < hi) {
        const int64_t middle = (lo + hi + 1) / 2;
        if (inv->first_unit[middle] <= unit)
            lo = middle;
        else
            hi = middle - 1;
    }
    return lo;
}

static __device__ void find_unit(const grad_args *a, const inverse_list *inv, int step_tiles,
                                 work_unit *unit) {
    unit->block = block_of_unit(inv, blockIdx.x);
    const int64_t before = (blockIdx.x - inv->first_unit[unit->block]) * inv->unit_rows;
    const int64_t left = inv->count[unit->block] - before;
    unit->begin = before * a->c.GT;
    unit->count = (int)(left < inv->unit_rows ? left : inv->unit_rows) * a->c.GT;
    unit->step_tiles = step_tiles;
}

/* A producer warp: P of step i, or dS of step i-1, of tiles 2 pair and 2 pair + 1. `acc` is
 * scratch. */
static __device__ __forceinline__ void produce(const grad_args *a, const inverse_list *inv,
                                               const step_info *s_info, acc_32x64 *acc, int i,
                                               int pair, bool makes_p, const float *s_p,
                                               float *s_to, float *s_staging) {
    const dims *c = &a->c;
    const kv_blocks *in = &a->in[inv->branch];
    const int d8 = makes_p ? c->dk8 : c->dv8;
    const real *x = makes_p ? a->q_t : a->dout_t, *y = makes_p ? in->kt : in->vt;
    if (2 * pair >= tiles_of(s_info, i))
        return;
    const int slot = 2 * pair + lane_row_32x64() / TILE_ROWS, row = lane_row_32x64() % TILE_ROWS;
    const int64_t tile = s_info->tile[i % RING][slot];
    const int offset = (slot * TILE_ROWS + row) * BLOCK + lane_col_32x64();
    zero_acc_32x64(acc);
    warp_matmul_32x64<true, false>(acc, x + tile * d8 * TILE_ROWS, 0,
                                   y + s_info->unit.block * d8 * BLOCK, BLOCK, d8, NULL, 0,
                                   s_staging);
    const float4 *terms = a->terms + (inv->branch * a->R * c->Hkv * c->GT + tile) * TILE_ROWS + row;
    if (makes_p) {
        recompute_p_32x64(c, acc, terms, s_info->mask[i % RING][slot], s_to + offset);
    } else {
        compute_ds_32x64(c, acc, terms, s_p + offset);
        store_rows(s_to + offset, BLOCK, acc);
    }
}

/* One unit: up to unit_rows rows that see one block of keys, step_tiles tiles at a time. step_tiles
 * / 2 warps make P of two tiles each, as many make dS; each of the others sums 32 keys and 64
 * columns of dv or dk. Grid: the largest number of units; times 2 if one CUDA block lacks the warps
 * for both, so that one sums dv and another dk. Shared memory: step_bytes(). */
static __global__ void __launch_bounds__((MAX_STEP_TILES + MAX_SUM_WARPS) * WARP_SIZE, 1)
    dkv_kernel(const grad_args a, const inverse_list inv, int step_tiles) {
    NSA_DYNAMIC_SHARED(float, s_all);
    const dims *c = &a.c;
    const int warp = (int)threadIdx.x / WARP_SIZE, size = step_tiles * TILE_ROWS * BLOCK,
              producers = step_tiles / 2;
    const int consumer = warp - 2 * producers; /* negative: a producer */
    const int dv_warps = blockIdx.y ? 0 : 2 * c->dvp / TILE_COLS;
    const int dk_warps = blockIdx.y + 1 < gridDim.y ? 0 : 2 * c->dkp / TILE_COLS;
    const bool values = consumer < dv_warps,
               active = consumer >= 0 && consumer < dv_warps + dk_warps;
    const int part =
        values ? consumer : consumer - dv_warps; /* which half of the keys, which 64 columns */
    const int keys = part % 2 * PAIR_ROWS + lane_row_32x64(),
              column = part / 2 * TILE_COLS + lane_col_32x64();
    const int ld = values ? c->dvp : c->dkp;
    float *s_p = s_all, *s_ds = s_all + 2 * size; /* two steps of each */
    float *s_staging = s_all + 4 * size + warp * STAGING_FLOATS;
    step_info *s_info =
        (step_info *)(s_all + 4 * size + (step_tiles + MAX_SUM_WARPS) * STAGING_FLOATS);
    if ((int)blockIdx.x >= inv.first_unit[inv.blocks])
        return;
    if (threadIdx.x == 0)
        find_unit(&a, &inv, step_tiles, &s_info->unit);
    __syncthreads();
    acc_32x64 acc;
    zero_acc_32x64(&acc);
    const int steps = (s_info->unit.count + step_tiles - 1) / step_tiles;
#pragma unroll 1
    for (int i = -2; i < steps + 2; i++) { /* two rounds to fill the pipeline, two to drain it */
        if (warp < 2 * producers) {
            const bool makes_p = warp < producers;
            const int my_step = makes_p ? i : i - 1;
            if (!makes_p)
                load_indices(&a, &inv, i + 2, s_info, warp % producers, producers);
            if (makes_p || dk_warps)
                produce(&a, &inv, s_info, &acc, my_step, warp % producers, makes_p,
                        s_p + (my_step & 1) * size, (makes_p ? s_p : s_ds) + (my_step & 1) * size,
                        s_staging);
        } else if (active) {
            const int my_step = values ? i - 1 : i - 2, tiles = tiles_of(s_info, my_step);
            const real *y = values ? a.dout_n : a.q_n;
            if (tiles)
                warp_matmul_32x64<false, false>(
                    &acc, (values ? s_p : s_ds) + (my_step & 1) * size + keys, BLOCK,
                    y + part / 2 * TILE_COLS, ld, tiles * TILE_ROWS, s_info->tile[my_step % RING],
                    0, s_staging);
        }
        __syncthreads();
    }
    if (!active)
        return;
    real *to = inv.partial + blockIdx.x * (int64_t)BLOCK * (c->dvp + c->dkp) +
               (values ? 0 : BLOCK * c->dvp) + keys * ld + column;
    store_rows(to, ld, &acc);
}

/* dv and dk of a block: sum over its units, in their order. Grid (blocks), 256 threads. */
static __global__ void __launch_bounds__(256)
    reduce_partials(const grad_args a, const inverse_list inv) {
    const dims *c = &a.c;
    const int64_t block = blockIdx.x, size = BLOCK * (c->dvp + c->dkp);
    const kv_blocks *in = &a.in[inv.branch];
    for (int i = (int)threadIdx.x; i < size; i += 256) {
        float total = 0;
        for (int64_t unit = inv.first_unit[block]; unit < inv.first_unit[block + 1]; unit++)
            total += inv.partial[unit * size + i];
        if (i < BLOCK * c->dvp)
            in->dv[block * BLOCK * c->dvp + i] = total;
        else
            in->dk[block * BLOCK * c->dkp + i - BLOCK * c->dvp] = total;
    }
}

/* ----------------------------------------------------------------- host */

/* P and dS of two steps, the staging buffers of all warps, step_info. */
static size_t step_bytes(int tiles) {
    return (size_t)(tiles * 4 * TILE_ROWS * BLOCK + (tiles + MAX_SUM_WARPS) * STAGING_FLOATS) *
               sizeof(float) +
           sizeof(step_info);
}

/* Tiles in one step: as many as max_shared bytes of shared memory hold. */
nsa_status open_keys(scratch *s, size_t max_shared) {
    s->dkv_tiles = MAX_STEP_TILES;
    while (s->dkv_tiles > 2 && step_bytes(s->dkv_tiles) > max_shared)
        s->dkv_tiles -= 2;
    return nsa_allow_shared(dkv_kernel);
}

/* dk and dv of one branch, by its inverse list. */
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *inv) {
    const dims *c = &args->c;
    const int step_tiles = ((const scratch *)st->scratch)->dkv_tiles;
    const int values = 2 * c->dvp / TILE_COLS, keys = 2 * c->dkp / TILE_COLS;
    const bool both = values + keys <= MAX_SUM_WARPS;
    const int sums = both ? values + keys : values > keys ? values : keys;
    const dim3 grid((unsigned)(inv->blocks + inv->max_extra_units), both ? 1 : 2);
    NSA_LAUNCH(dkv_kernel, grid, (step_tiles + sums) * WARP_SIZE, step_bytes(step_tiles),
               st->stream, *args, *inv, step_tiles);
    NSA_LAUNCHED("dkv");
    NSA_LAUNCH(reduce_partials, (unsigned)inv->blocks, 256, 0, st->stream, *args, *inv);
    NSA_LAUNCHED("reduce_partials");
    return NSA_OK;
}
