/** @file
 *  @brief Inputs into the stage's layouts: kernels read the caller's tensor on the device, or what
 * a transfer of the host's has brought. K and V become stage 02's blocks; Q and dO become row
 * tiles, the A of the tile product. */
#include "load.cuh"

/* Where rows of all heads go: transposed [tiles][D8][16] and, unless it is NULL, natural
 * [tiles][16][Dp]. */
typedef struct row_view {
    real *transposed, *natural;
    int D, D8, Dp;
} row_view;

enum {
    PACK_COLS = 32,            /* columns of keys that are transposed at a time */
    PACK_WARPS = 8,            /* of a CUDA block that packs keys, */
    ROW_WARPS = 4,             /* and of one that packs a row tile */
    ROW_LD = 4 * TILE_COLS + 2 /* floats of a row in shared memory */
};

/* ------------------------------------------------------------ the layouts */

/* x [rows,Hq,D], from result row `row` on -> row tiles. The heads of a tile are neighbours: they
 * are read and, transposed in shared memory, written without a gap. Grid: tiles. Block: 4 warps.
 * Shared: a tile; with rows two floats longer 16 rows of two columns lie in 32 banks. */
static __global__ void __launch_bounds__(ROW_WARPS *WARP_SIZE)
    pack_rows_kernel(dims c, nsa_source x, int64_t row, row_view to) {
    __shared__ float s_x[TILE_ROWS * ROW_LD];
    const int64_t tile = row * c.Hkv * c.GT + blockIdx.x, r = tile / (c.Hkv * c.GT);
    const int h = (int)(tile / c.GT % c.Hkv), g0 = (int)(tile % c.GT) * TILE_ROWS;
    const int heads = min((int)TILE_ROWS, c.G - g0), g = (int)threadIdx.x % TILE_ROWS;
    const int64_t first = (nsa_source_row(&x, r) * c.Hq + h * c.G + g0) * to.D;
    for (int i = (int)threadIdx.x / WARP_SIZE; i < heads; i += ROW_WARPS) {
        for (int col = lane_id(); col < to.D; col += WARP_SIZE) {
            const float value = nsa_element(x.data, x.dtype, first + i * to.D + col);
            s_x[i * ROW_LD + col] = value;
            if (to.natural)
                to.natural[(tile * TILE_ROWS + i) * to.Dp + col] = value;
        }
    }
    __syncthreads();
    for (int col = (int)threadIdx.x / TILE_ROWS; col < to.D && g < heads;
         col += ROW_WARPS * WARP_SIZE / TILE_ROWS)
        to.transposed[(tile * to.D8 + col) * TILE_ROWS + g] = s_x[g * ROW_LD + col];
}

/* x [rows,Hkv,D], from row `row` on -> blocks: row i of the tensor is key number g_key[i], or none
 * if that is -1. Grid: (64 rows, head). Block: 8 warps. Shared: 64 keys, 32 columns at a time. */
static __global__ void __launch_bounds__(PACK_WARPS *WARP_SIZE)
    pack_keys_kernel(nsa_source x, const int64_t *g_key, int64_t row, int64_t count, key_view to) {
    __shared__ float s_x[BLOCK * (PACK_COLS + 1)];
    const int warp = (int)threadIdx.x / WARP_SIZE, h = (int)(blockIdx.x % to.Hkv);
    const int64_t t0 = blockIdx.x / to.Hkv * BLOCK;
    const int n = count - t0 < BLOCK ? (int)(count - t0) : (int)BLOCK;
    for (int c0 = 0; c0 < to.D; c0 += PACK_COLS) {
        const int c = c0 + lane_id();
        for (int t = warp; t < n && c < to.D; t += PACK_WARPS) {
            const int64_t r = nsa_source_row(&x, row + t0 + t), key = g_key[row + t0 + t];
            const float value = nsa_element(x.data, x.dtype, (r * to.Hkv + h) * to.D + c);
            s_x[t * (PACK_COLS + 1) + c - c0] = value;
            if (to.natural && key >= 0)
                *element_at(&to, h, key, c) = value;
        }
        __syncthreads();
        const int t = (int)threadIdx.x % BLOCK, last = min(c0 + PACK_COLS, to.D);
        const int64_t key = t < n ? g_key[row + t0 + t] : -1;
        for (int col = c0 + (int)threadIdx.x / BLOCK; to.transposed && key >= 0 && col < last;
             col += PACK_WARPS * WARP_SIZE / BLOCK)
            *transposed_at(&to, h, key, col) = s_x[t * (PACK_COLS + 1) + col - c0];
        __syncthreads();
    }
}

/* --------------------------------------------------------------- inputs */

static nsa_status load_rows(stage *st, nsa_rows src, row_view to) {
    const int64_t tiles = st->c.Hkv * (int64_t)st->c.GT; /* of a row */
    nsa_source from;
    for (int64_t r = 0, n; r < src.count; r += n) {
        TRY(nsa_find_rows(&st->streams, &st->staging, &src, r, &n, &from));
        LAUNCH(pack_rows_kernel, (unsigned)(n * tiles), ROW_WARPS * WARP_SIZE, 0, st, st->c, from,
               r, to);
    }
    return NSA_OK;
}

nsa_status load_queries(stage *st, const nsa_tensors *in, const int64_t *tokens,
                        const int64_t *g_tokens, int64_t R) {
    const dims *c = &st->c;
    TRY(load_rows(st, {&in->at[NSA_Q], tokens, g_tokens, R, (int64_t)c->Hq * c->dk},
                  {st->q_t, st->q_n, c->dk, c->dk8, c->wp}));
    return nsa_copy_rows(&st->streams, &st->staging,
                         {&in->at[NSA_GATE], tokens, g_tokens, R, (int64_t)c->Hq * BRANCHES},
                         st->gate);
}

/* ---------------------------------------------------------- keys and values */

key_view view_of(const stage *st, const kv_blocks *in, int pair) {
    const dims *c = &st->c;
    const bool keys = pair == KEYS;
    return {in->transposed[pair],   in->natural[pair],     in->stride, c->Hkv, keys ? c->dk : c->dv,
            keys ? c->dk8 : c->dv8, keys ? c->dkp : c->dvp};
}

gradient_view gradient_view_of(const stage *st, int branch, int pair) {
    const key_view x = view_of(st, &st->in[branch], pair);
    return {NULL, st->in[branch].gradient[pair], x.stride, x.Hkv, x.D, x.D8, x.Dp};
}

nsa_status zero_blocks(stage *st, const kv_blocks *in) {
    for (int pair = 0; pair < PAIR; pair++) {
        const key_view x = view_of(st, in, pair);
        if (x.transposed)
            TRY(zero(st, x.transposed, x.Hkv * x.stride * BLOCK * x.D8));
        if (x.natural)
            TRY(zero(st, x.natural, x.Hkv * x.stride * BLOCK * x.Dp));
    }
    return NSA_OK;
}

nsa_status pack_keys(stage *st, nsa_source x, const int64_t *key, int64_t row, int64_t count,
                     key_view to) {
    const int64_t tiles = (count + BLOCK - 1) / BLOCK * to.Hkv;
    LAUNCH(pack_keys_kernel, (unsigned)tiles, PACK_WARPS * WARP_SIZE, 0, st, x, key, row, count,
           to);
    return NSA_OK;
}

nsa_status load_keys(stage *st, const nsa_tensors *in, const int64_t *key, int64_t count,
                     const kv_blocks *to) {
    nsa_source from;
    for (int i = SLC * PAIR; i < LAYOUTS * PAIR; i++) {
        const int branch = i / PAIR, tensor = branch == RAW ? CMP : branch;
        const key_view view = view_of(st, &to[branch], i % PAIR);
        const nsa_rows rows = {&in->at[NSA_K_CMP + tensor * PAIR + i % PAIR], NULL, NULL, count,
                               (int64_t)view.Hkv * view.D};
        for (int64_t t = 0, n; t < count; t += n) {
            TRY(nsa_find_rows(&st->streams, &st->staging, &rows, t, &n, &from));
            TRY(pack_keys(st, from, key, t, n, view));
        }
    }
    return NSA_OK;
}

nsa_status load_block_lists(stage *st, const nsa_tensor *idx, const int32_t *checked,
                            const int64_t *g_token, const int32_t *g_t, int64_t rows) {
    const dims *c = &st->c;
    st->forced = idx->dtype != NSA_NONE;
    TRY(nsa_load_block_lists(&st->streams, idx, checked,
                             {NULL, g_token, g_t, rows, c->Hkv, c->n, c->lb}, st->forced_idx,
                             st->bad));
    if (st->plan->setup.flags & NSA_CHECK_VALUES)
        return nsa_check_device_values(&st->streams, st->gate, rows, c->Hq, st->bad);
    return NSA_OK;
}

/* ------------------------------------------------------------------- load */

/* Set where each sequence begins in the blocks, where its tokens go, and its compressed tokens.
 * Every sequence begins a new block. */
static void make_sequences(stage *st) {
    const nsa_batch *batch = &st->batch;
    int64_t first[LAYOUTS] = {0};
    for (int64_t b = 0; b < batch->B; b++) {
        sequence *sq = &st->host_seqs[b];
        sq->token = batch->seq[b];
        sq->cmp = batch->cmp[b];
        sq->len = batch->seq[b + 1] - sq->token;
        sq->n_cmp = batch->cmp[b + 1] - sq->cmp;
        for (int x = 0; x < LAYOUTS; x++) {
            sq->first_block[x] = first[x];
            first[x] += ((x == CMP ? sq->n_cmp : sq->len) + BLOCK - 1) / BLOCK;
        }
        for (int64_t t = 0; t < sq->len; t++)
            st->host_key[sq->token + t] = sq->first_block[RAW] * BLOCK + t;
        for (int64_t i = 0; i < sq->n_cmp; i++) {
            st->host_cmp.first[sq->cmp + i] = sq->first_block[RAW] * BLOCK + i * st->cfg.cmp_stride;
            st->host_cmp.key[sq->cmp + i] = sq->first_block[CMP] * BLOCK + i;
        }
    }
}

/* Tokens, positions and sequences of the rows. */
static nsa_status load_row_coords(stage *st) {
    const nsa_batch *batch = &st->batch;
    int32_t *row_t = st->host_rows, *row_seq = row_t + batch->R;
    for (int64_t r = 0, b = 0; r < batch->R; r++) {
        while (batch->row[r] >= batch->seq[b + 1])
            b++;
        row_t[r] = (int32_t)(batch->row[r] - batch->seq[b]);
        row_seq[r] = (int32_t)b;
    }
    TRY(upload(st, st->token, batch->row, batch->R));
    TRY(upload(st, st->row_t, row_t, batch->R));
    return upload(st, st->row_seq, row_seq, batch->R);
}

/* Group the rows into tiles of up to `rows` neighbours, none of two sequences. */
nsa_status make_tiles(stage *st, int rows, row_range *host, row_range *tiles, int64_t *n_tiles) {
    const int32_t *row_seq = st->host_rows + st->batch.R;
    int64_t n = 0;
    for (int64_t r = 0; r < st->batch.R; r++) {
        row_range *last = n ? &host[n - 1] : NULL;
        if (last && last->sequence == row_seq[r] && last->count < rows)
            last->count++;
        else
            host[n++] = row_range{r, 1, row_seq[r]};
    }
    *n_tiles = n;
    return upload(st, tiles, host, n);
}

static nsa_status load_weights(stage *st, const nsa_tensors *in) {
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        const int pair = i / WEIGHTS, w = i % WEIGHTS;
        const int64_t count = nsa_weight_count(&st->cfg, pair, w);
        if (!st->phi[pair][w])
            continue;
        TRY(nsa_copy_rows(&st->streams, &st->staging,
                          {&in->at[NSA_PHI_FIRST + i], NULL, NULL, count, 1}, st->phi[pair][w]));
    }
    return NSA_OK;
}

/* What follows from the geometry of the pack: tables, which a graph of the pack goes on to use. */
static nsa_status load_tables(stage *st) {
    const nsa_batch *batch = &st->batch;
    make_sequences(st);
    TRY(upload(st, st->seqs, st->host_seqs, batch->B));
    TRY(upload(st, st->key, st->host_key, batch->T));
    st->cmp.count = batch->N;
    TRY(upload(st, st->cmp.first, st->host_cmp.first, batch->N));
    TRY(upload(st, st->cmp.key, st->host_cmp.key, batch->N));
    TRY(load_row_coords(st));
    TRY(make_tiles(st, st->warps, st->host_tiles, st->tiles, &st->n_tiles));
    if (st->plan->setup.flags & NSA_BACKWARD)
        TRY(make_grad_tiles(st));
    return NSA_OK;
}

nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    stage *st = (stage *)self;
    st->batch = *batch;
    if (!batch->same)
        TRY(load_tables(st));
    TRY(load_queries(st, in, batch->row, st->token, batch->R));
    TRY(load_keys(st, in, st->key, batch->T, st->in));
    TRY(load_weights(st, in));
    TRY(load_block_lists(st, &in->at[NSA_BLOCK_IDX], batch->block_idx, st->token, st->row_t,
                         batch->R));
    return nsa_stream_finish(&st->streams);
}

nsa_status load_dout(void *self, const nsa_tensor *dout) {
    stage *st = (stage *)self;
    const dims *c = &st->c;
    TRY(load_rows(st, {dout, st->batch.row, st->token, st->batch.R, (int64_t)c->Hq * c->dv},
                  {st->dout_t, st->dout_n, c->dv, c->dv8, c->wp}));
    return nsa_stream_finish(&st->streams);
}
