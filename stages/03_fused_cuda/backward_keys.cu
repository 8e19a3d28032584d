/** @file
 *  @brief Backward, seen from the keys: dk and dv of a block, from all rows that visit it.
 *
 *  All four products of a step take equally long, so a quarter of the warps has each, and works
 *  on another step than the others: while some make P of step i, others make dS of step i-1, from
 *  its P, and add P^T dO of i-1 to dv and dS^T Q of i-2 to dk. So multiply-adds of one product fill
 *  the gaps of another, and the warps meet once a step. */
#include "backward.cuh"

/* The visits of a unit, in row tiles; of one block of one head. */
typedef struct unit_args {
    int64_t block;
    int64_t begin; /* its first tile among those of all the block's visits */
    int count;     /* its tiles */
    int step;      /* tiles of a step */
} unit_args;

/* What the warps of a CUDA block tell each other, in shared memory: registers are
 * scarce. */
typedef struct step_info {
    unit_args unit;
    int64_t tile[RING][STEP];  /* row tiles of a step, in slot step % RING */
    uint64_t mask[RING][STEP]; /* which keys of the block each sees */
} step_info;

/* The keys of block `own` of its sequence that position t sees through the list idx [n]; the lanes
 * look through the list together. */
static __device__ uint64_t selected_bits(const dims *c, const int32_t *idx, int own, int t) {
    uint64_t mask = 0;
    for (int i = (int)threadIdx.x % WARP; i < c->n && idx[i] >= 0; i += WARP) {
        const key_range seen = seen_block(c, idx[i], t);
        mask |= key_bits(seen.lo, seen.hi, own * BLOCK);
    }
    __syncwarp();
    for (int other = 1; other < WARP; other *= 2)
        mask |= __shfl_xor_sync(0xffffffffu, (unsigned long long)mask, other);
    return mask;
}

/* Which tiles step i of the unit has, and what they see: warp `by` of `of` looks up its share of
 * them. Those past the end see nothing, and have the last one's address. */
static __device__ void look_up(const grad_args *a, const visit_args *v, int i, step_info *s_info,
                               int by, int of) {
    const dims *c = &a->c;
    const unit_args *unit = &s_info->unit;
    const int first = i * unit->step;
    if (first >= unit->count)
        return;
    for (int k = by; k < unit->step; k += of) {
        const bool is = first + k < unit->count;
        const int64_t at = unit->begin + (is ? first + k : unit->count - 1);
        int64_t r = v->start[unit->block] + at / c->GT;
        if (v->list)
            r = v->list[r];
        const int64_t pair = r * c->Hkv + unit->block / v->stride;
        const int t = a->row_t[r];
        const int own = (int)(unit->block % v->stride - a->seqs[a->row_seq[r]].first[v->branch]);
        uint64_t mask = 0;
        if (v->branch == SLC) {
            mask = selected_bits(c, a->block_idx + pair * c->n, own, t);
        } else {
            const key_range seen = seen_range(c, v->branch, t);
            mask = key_bits(seen.lo, seen.hi, own * BLOCK);
        }
        if (threadIdx.x % WARP == 0) {
            s_info->tile[i % RING][k] = pair * c->GT + at % c->GT;
            s_info->mask[i % RING][k] = is ? mask : 0;
        }
    }
}

/* Tiles of step i; 0 if there is no such step. */
static __device__ __forceinline__ int tiles_of(const step_info *s_info, int i) {
    const unit_args *unit = &s_info->unit;
    const int left = unit->count - i * unit->step;
    return i < 0 || left <= 0 ? 0 : left < unit->step ? left : unit->step;
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

static __device__ void find_unit(const grad_args *a, const visit_args *v, int step,
                                 unit_args *unit) {
    unit->block = block_of_unit(v, blockIdx.x);
    const int64_t before = (blockIdx.x - v->first_unit[unit->block]) * v->most;
    const int64_t left = v->count[unit->block] - before;
    unit->begin = before * a->c.GT;
    unit->count = (int)(left < v->most ? left : v->most) * a->c.GT;
    unit->step = step;
}

/* A warp that makes P (of step i) or dS (of i-1): of tiles 2 pair and 2 pair + 1. `acc` holds
 * nothing before or after. */
static __device__ __forceinline__ void make(const grad_args *a, const visit_args *v,
                                            const step_info *s_info, wide *acc, int i, int pair,
                                            bool scores, const float *s_p, float *s_to,
                                            float *s_mine) {
    const dims *c = &a->c;
    const kv_blocks *in = &a->in[v->branch];
    const int d8 = scores ? c->dk8 : c->dv8;
    const real *x = scores ? a->q_t : a->dout_t, *y = scores ? in->kt : in->vt;
    if (2 * pair >= tiles_of(s_info, i))
        return;
    const int slot = 2 * pair + wide_row() / ROWS, row = wide_row() % ROWS;
    const int64_t tile = s_info->tile[i % RING][slot];
    const int at = (slot * ROWS + row) * BLOCK + wide_col();
    zero_wide(acc);
    product_wide<true, false>(acc, x + tile * d8 * ROWS, 0, y + s_info->unit.block * d8 * BLOCK,
                              BLOCK, d8, NULL, 0, s_mine);
    const float4 *terms = a->terms + (v->branch * a->R * c->Hkv * c->GT + tile) * ROWS + row;
    if (scores) {
        store_p(c, acc, terms, s_info->mask[i % RING][slot], s_to + at);
    } else {
        make_ds(c, acc, terms, s_p + at);
        store_rows(s_to + at, BLOCK, acc);
    }
}

/* One unit: up to `most` visits of one block of keys, `step` tiles at a time. step / 2 warps make P
 * of two tiles each, as many their dS; each of the others sums 32 keys and 64 columns of dv or dk.
 * Grid: as many units as there may be; 2 if one CUDA block sums dv and another dk, where one has no
 * warps for both. Shared memory: step_bytes(). */
static __global__ void __launch_bounds__((STEP + MOST_SUMS) * WARP, 1)
    key_gradients(const grad_args a, const visit_args v, int step) {
    NSA_DYNAMIC_SHARED(float, s_all);
    const dims *c = &a.c;
    const int warp = (int)threadIdx.x / WARP, size = step * ROWS * BLOCK, makers = step / 2;
    const int sum = warp - 2 * makers; /* negative: this warp sums nothing */
    const int value_parts = blockIdx.y ? 0 : 2 * c->dvp / STRIP;
    const int key_parts = blockIdx.y + 1 < gridDim.y ? 0 : 2 * c->dkp / STRIP;
    const bool values = sum < value_parts, busy = sum >= 0 && sum < value_parts + key_parts;
    const int of_part = values ? sum : sum - value_parts; /* half of the keys, strip */
    const int keys = of_part % 2 * PAIR_ROWS + wide_row(),
              column = of_part / 2 * STRIP + wide_col();
    const int ld = values ? c->dvp : c->dkp;
    float *s_p = s_all, *s_ds = s_all + 2 * size; /* of two steps each */
    float *s_mine = s_all + 4 * size + warp * SLOT;
    step_info *s_info = (step_info *)(s_all + 4 * size + (step + MOST_SUMS) * SLOT);
    if ((int)blockIdx.x >= v.first_unit[v.blocks])
        return;
    if (threadIdx.x == 0)
        find_unit(&a, &v, step, &s_info->unit);
    __syncthreads();
    wide acc;
    zero_wide(&acc);
    const int steps = (s_info->unit.count + step - 1) / step;
#pragma unroll 1
    for (int i = -2; i < steps + 2; i++) { /* two rounds to look up, two to empty the pipeline */
        if (warp < 2 * makers) {
            const bool scores = warp < makers;
            const int mine = scores ? i : i - 1;
            if (!scores)
                look_up(&a, &v, i + 2, s_info, warp % makers, makers);
            if (scores || key_parts)
                make(&a, &v, s_info, &acc, mine, warp % makers, scores, s_p + (mine & 1) * size,
                     (scores ? s_p : s_ds) + (mine & 1) * size, s_mine);
        } else if (busy) {
            const int mine = values ? i - 1 : i - 2, tiles = tiles_of(s_info, mine);
            const real *y = values ? a.dout_n : a.q_n;
            if (tiles)
                product_wide<false, false>(&acc, (values ? s_p : s_ds) + (mine & 1) * size + keys,
                                           BLOCK, y + of_part / 2 * STRIP, ld, tiles * ROWS,
                                           s_info->tile[mine % RING], 0, s_mine);
        }
        __syncthreads();
    }
    if (!busy)
        return;
    real *to = v.partial + blockIdx.x * (int64_t)BLOCK * (c->dvp + c->dkp) +
               (values ? 0 : BLOCK * c->dvp) + keys * ld + column;
    store_rows(to, ld, &acc);
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

/* P and dS, of two steps each; what is staged; the tiles' numbers and masks. */
static size_t step_bytes(int tiles) {
    return (size_t)(tiles * 4 * ROWS * BLOCK + (tiles + MOST_SUMS) * SLOT) * sizeof(float) +
           sizeof(step_info);
}

/* As many tiles a step as `room` bytes of shared memory hold. */
nsa_status open_keys(scratch *s, size_t room) {
    s->dkv_tiles = STEP;
    while (s->dkv_tiles > 2 && step_bytes(s->dkv_tiles) > room)
        s->dkv_tiles -= 2;
    return nsa_allow_shared(key_gradients);
}

/* dk and dv of one branch, from the visits that list_visits() found. */
nsa_status backward_keys(stage *st, const grad_args *args, const visit_args *v) {
    const dims *c = &args->c;
    const int step = ((const scratch *)st->scratch)->dkv_tiles;
    const int values = 2 * c->dvp / STRIP, keys = 2 * c->dkp / STRIP;
    const bool both = values + keys <= MOST_SUMS;
    const int sums = both ? values + keys : values > keys ? values : keys;
    const dim3 grid((unsigned)(v->blocks + v->most_units), both ? 1 : 2);
    NSA_LAUNCH(key_gradients, grid, (step + sums) * WARP, step_bytes(step), st->stream, *args, *v,
               step);
    NSA_LAUNCHED("key_gradients");
    NSA_LAUNCH(add_units, (unsigned)v->blocks, 256, 0, st->stream, *args, *v);
    NSA_LAUNCHED("add_units");
    return NSA_OK;
}
