/** @file
 *  @brief Copy inputs to the device: each tensor in chunks, which a kernel then packs into its
 *  layout. K and V become stage 02's blocks; Q and dO become row tiles, the A of the tile
 *  product. */
#include "load.cuh"

/* Where rows of all heads go: transposed [tiles][D8][16] and, unless it is NULL, natural
 * [tiles][16][Dp]. */
typedef struct row_view {
    real *transposed, *natural;
    int D, D8, Dp;
} row_view;

/* ------------------------------------------------------------ the layouts */

/* g_src [count,Hq,D], the rows from result row `row` on -> row tiles. Head h of row r is row
 * h % G % 16 of tile (r Hkv + h/G) GT + h % G / 16. One element a thread. */
static __global__ void pack_rows_kernel(dims c, const real *g_src, int64_t row, int64_t count,
                                        row_view to) {
    const int D = to.D;
    const int64_t all = count * c.Hq * D;
    for (int64_t i = first_of_thread(); i < all; i += threads_of_grid()) {
        const int64_t r = row + i / D / c.Hq;
        const int h = (int)(i / D % c.Hq), col = (int)(i % D), g = h % c.G;
        const int64_t tile = (r * c.Hkv + h / c.G) * c.GT + g / TILE_ROWS;
        to.transposed[(tile * to.D8 + col) * TILE_ROWS + g % TILE_ROWS] = g_src[i];
        if (to.natural)
            to.natural[(tile * TILE_ROWS + g % TILE_ROWS) * to.Dp + col] = g_src[i];
    }
}

/* g_src [count,Hkv,D] -> blocks: token i is key number g_key[i]. One element a thread. */
static __global__ void pack_keys_kernel(const real *g_src, const int64_t *g_key, int64_t count,
                                        key_view to) {
    const int64_t all = count * to.Hkv * to.D;
    for (int64_t i = first_of_thread(); i < all; i += threads_of_grid()) {
        const int64_t m = i / to.D;
        store_key(&to, m % to.Hkv, g_key[m / to.Hkv], (int)(i % to.D), g_src[i]);
    }
}

/* -------------------------------------------------------------- transfers */

/* Rows of a tensor [T,size]: those of the tokens listed, or the first `count` if that is NULL. */
typedef struct tensor_rows {
    const nsa_tensor *x;
    const int64_t *tokens;
    int64_t count, size;
} tensor_rows;

nsa_status copy_to_device(stage *st, void *to, const void *from, size_t bytes) {
    if (bytes)
        NSA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, st->stream));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

nsa_status copy_cmp_tokens(stage *st, cmp_tokens *to, const cmp_tokens *from) {
    const size_t bytes = (size_t)from->count * sizeof *to->first;
    to->count = from->count;
    TRY(copy_to_device(st, to->first, from->first, bytes));
    return copy_to_device(st, to->key, from->key, bytes);
}

/* Rows r.. to the device, as many as one transfer takes. @return their number in `n` */
static nsa_status upload(stage *st, tensor_rows src, int64_t r, real *to, int64_t *n) {
    const int64_t max_rows = st->chunk / src.size;
    *n = src.count - r < max_rows ? src.count - r : max_rows;
    if (!src.tokens)
        nsa_copy_f32(st->host_staging, src.x, r * src.size, *n * src.size);
    for (int64_t i = 0; i < *n && src.tokens; i++)
        nsa_copy_f32(st->host_staging + i * src.size, src.x, src.tokens[r + i] * src.size,
                     src.size);
    return copy_to_device(st, to, st->host_staging, (size_t)(*n * src.size) * sizeof(real));
}

/* All rows to an array of the same layout. */
static nsa_status upload_all(stage *st, tensor_rows src, real *to) {
    for (int64_t r = 0, n; r < src.count; r += n)
        TRY(upload(st, src, r, to + r * src.size, &n));
    return NSA_OK;
}

static nsa_status load_rows(stage *st, tensor_rows src, row_view to) {
    for (int64_t r = 0, n; r < src.count; r += n) {
        TRY(upload(st, src, r, st->dev_staging, &n));
        NSA_LAUNCH(pack_rows_kernel, grid_for(n * src.size), THREADS, 0, st->stream, st->c,
                   st->dev_staging, r, n, to);
        NSA_LAUNCHED("pack_rows");
    }
    return NSA_OK;
}

nsa_status load_queries(stage *st, const nsa_tensors *in, const int64_t *tokens, int64_t R) {
    const dims *c = &st->c;
    TRY(load_rows(st, {&in->at[NSA_Q], tokens, R, (int64_t)c->Hq * c->dk},
                  {st->q_t, st->q_n, c->dk, c->dk8, c->wp}));
    return upload_all(st, {&in->at[NSA_GATE], tokens, R, (int64_t)c->Hq * BRANCHES}, st->gate);
}

/* ---------------------------------------------------------- keys and values */

key_view view_of(const stage *st, const kv_blocks *in, int pair) {
    const dims *c = &st->c;
    const bool keys = pair == KEYS;
    return {in->transposed[pair],   in->natural[pair],     in->stride, c->Hkv, keys ? c->dk : c->dv,
            keys ? c->dk8 : c->dv8, keys ? c->dkp : c->dvp};
}

key_view gradient_view(const stage *st, int branch, int pair) {
    key_view view = view_of(st, &st->in[branch], pair);
    view.transposed = NULL;
    view.natural = st->in[branch].gradient[pair];
    return view;
}

nsa_status zero_blocks(stage *st, const kv_blocks *in) {
    for (int pair = 0; pair < PAIR; pair++) {
        const key_view x = view_of(st, in, pair);
        const size_t keys = (size_t)(x.Hkv * x.stride * BLOCK) * sizeof(real);
        if (x.transposed)
            NSA_CUDA(cudaMemsetAsync(x.transposed, 0, keys * (size_t)x.D8, st->stream));
        if (x.natural)
            NSA_CUDA(cudaMemsetAsync(x.natural, 0, keys * (size_t)x.Dp, st->stream));
    }
    return NSA_OK;
}

nsa_status pack_keys(stage *st, const real *src, const int64_t *key, int64_t count, key_view to) {
    NSA_LAUNCH(pack_keys_kernel, grid_for(count * to.Hkv * to.D), THREADS, 0, st->stream, src, key,
               count, to);
    NSA_LAUNCHED("pack_keys");
    return NSA_OK;
}

nsa_status load_keys(stage *st, const nsa_tensors *in, const int64_t *key, int64_t count,
                     const kv_blocks *to) {
    for (int i = SLC * PAIR; i < LAYOUTS * PAIR; i++) {
        const int branch = i / PAIR, source = branch == RAW ? CMP : branch;
        const key_view view = view_of(st, &to[branch], i % PAIR);
        const nsa_tensor *x = &in->at[NSA_K_CMP + source * PAIR + i % PAIR];
        for (int64_t t = 0, n; t < count; t += n) {
            TRY(upload(st, {x, NULL, count, (int64_t)view.Hkv * view.D}, t, st->dev_staging, &n));
            TRY(pack_keys(st, st->dev_staging, key + t, n, view));
        }
    }
    return NSA_OK;
}

/* ------------------------------------------------------------------- load */

/* Set where each sequence begins in the blocks, where its tokens go, and its compressed tokens.
 * Every sequence begins a new block. */
static void make_sequences(stage *st) {
    const nsa_batch *batch = &st->batch;
    int64_t first[LAYOUTS] = {0};
    st->host_cmp.count = batch->N;
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

/* Positions and sequences of the rows. */
static nsa_status load_row_coords(stage *st) {
    const nsa_batch *batch = &st->batch;
    const size_t bytes = (size_t)batch->R * sizeof *st->row_t;
    int32_t *row_t = st->host_rows, *row_seq = row_t + batch->R;
    for (int64_t r = 0, b = 0; r < batch->R; r++) {
        while (batch->row[r] >= batch->seq[b + 1])
            b++;
        row_t[r] = (int32_t)(batch->row[r] - batch->seq[b]);
        row_seq[r] = (int32_t)b;
    }
    TRY(copy_to_device(st, st->row_t, row_t, bytes));
    return copy_to_device(st, st->row_seq, row_seq, bytes);
}

/* Group the rows into tiles of up to `rows` neighbours, none of two sequences. */
nsa_status make_tiles(stage *st, int rows, row_range *tiles, int64_t *n_tiles) {
    const int32_t *row_seq = st->host_rows + st->batch.R;
    int64_t n = 0;
    for (int64_t r = 0; r < st->batch.R; r++) {
        row_range *last = n ? &st->host_tiles[n - 1] : NULL;
        if (last && last->sequence == row_seq[r] && last->count < rows)
            last->count++;
        else
            st->host_tiles[n++] = row_range{r, 1, row_seq[r]};
    }
    *n_tiles = n;
    return copy_to_device(st, tiles, st->host_tiles, (size_t)n * sizeof *tiles);
}

static nsa_status load_weights(stage *st, const nsa_tensors *in) {
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        const int pair = i / WEIGHTS, w = i % WEIGHTS;
        if (st->phi[pair][w])
            TRY(upload_all(st, {&in->at[NSA_PHI_FIRST + i], NULL, weight_count(st, pair, w), 1},
                           st->phi[pair][w]));
    }
    return NSA_OK;
}

nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    stage *st = (stage *)self;
    const dims *c = &st->c;
    const size_t idx_bytes = (size_t)(batch->R * c->Hkv * c->n) * sizeof(int32_t);
    st->batch = *batch;
    make_sequences(st);
    TRY(copy_to_device(st, st->seqs, st->host_seqs, (size_t)batch->B * sizeof *st->seqs));
    TRY(copy_to_device(st, st->key, st->host_key, (size_t)batch->T * sizeof *st->key));
    TRY(copy_cmp_tokens(st, &st->cmp, &st->host_cmp));
    TRY(load_row_coords(st));
    TRY(make_tiles(st, st->warps, st->tiles, &st->n_tiles));
    if (st->plan->setup.flags & NSA_BACKWARD)
        TRY(make_grad_tiles(st));
    if (batch->block_idx)
        TRY(copy_to_device(st, st->forced_idx, batch->block_idx, idx_bytes));
    TRY(load_queries(st, in, batch->row, batch->R));
    for (int x = SLC; x < LAYOUTS; x++)
        TRY(zero_blocks(st, &st->in[x]));
    TRY(load_keys(st, in, st->key, batch->T, st->in));
    TRY(load_weights(st, in));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

nsa_status load_dout(void *self, const nsa_tensor *dout) {
    stage *st = (stage *)self;
    const dims *c = &st->c;
    TRY(load_rows(st, {dout, st->batch.row, st->batch.R, (int64_t)c->Hq * c->dv},
                  {st->dout_t, st->dout_n, c->dv, c->dv8, c->wp}));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}
