/** @file
 *  @brief Copy inputs to the device: each tensor in chunks, which a kernel then packs into its
 *  layout. K and V become stage 02's blocks; Q and dO become row tiles, the A of the tile
 *  product. */
#include "load.cuh"

/* ------------------------------------------------------------ the layouts */

/* g_src [count,Hq,D], the rows from result row `row` on -> row tiles: g_t [D8][16] and (unless
 * NULL) g_n [16][Dp]. Head h of row r is row h % G % 16 of tile (r Hkv + h/G) GT + h % G / 16. One
 * element a thread. */
static __global__ void pack_rows_kernel(dims c, const real *g_src, int64_t row, int64_t count,
                                        int D, int D8, int Dp, real *g_t, real *g_n) {
    const int64_t all = count * c.Hq * D;
    for (int64_t i = first_of_thread(); i < all; i += threads_of_grid()) {
        const int64_t r = row + i / D / c.Hq;
        const int h = (int)(i / D % c.Hq), col = (int)(i % D), g = h % c.G;
        const int64_t tile = (r * c.Hkv + h / c.G) * c.GT + g / TILE_ROWS;
        g_t[(tile * D8 + col) * TILE_ROWS + g % TILE_ROWS] = g_src[i];
        if (g_n)
            g_n[(tile * TILE_ROWS + g % TILE_ROWS) * Dp + col] = g_src[i];
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

static nsa_status upload(stage *st, real *to, const nsa_tensor *src, int64_t first, int64_t count) {
    for (int64_t done = 0; done < count; done += st->chunk) {
        const int64_t n = count - done < st->chunk ? count - done : st->chunk;
        nsa_copy_f32(st->host_staging, src, first + done, n);
        TRY(copy_to_device(st, to + done, st->host_staging, (size_t)n * sizeof(real)));
    }
    return NSA_OK;
}

/* Rows r..r+count-1 of a tensor [T,row_size] to st->host_staging: those of the listed tokens, or
 * the first ones if `tokens` is NULL. */
static void gather(stage *st, const nsa_tensor *src, const int64_t *tokens, int64_t r,
                   int64_t count, int64_t row_size) {
    for (int64_t i = 0; i < count; i++)
        nsa_copy_f32(st->host_staging + i * row_size, src,
                     (tokens ? tokens[r + i] : r + i) * row_size, row_size);
}

nsa_status load_rows(stage *st, const nsa_tensor *src, const int64_t *tokens, int64_t R, int64_t D,
                     real *g_t, real *g_n) {
    const dims *c = &st->c;
    const int64_t row_size = c->Hq * D, at_once = st->chunk / row_size;
    const int D8 = (int)round_up(D, DIM_ALIGN), Dp = (int)round_up(D, TILE_COLS);
    for (int64_t r = 0; r < R; r += at_once) {
        const int64_t count = R - r < at_once ? R - r : at_once;
        gather(st, src, tokens, r, count, row_size);
        TRY(copy_to_device(st, st->dev_staging, st->host_staging,
                           (size_t)(count * row_size) * sizeof(real)));
        NSA_LAUNCH(pack_rows_kernel, grid_for(count * row_size), THREADS, 0, st->stream, *c,
                   st->dev_staging, r, count, (int)D, D8, Dp, g_t, g_n);
        NSA_LAUNCHED("pack_rows");
    }
    return NSA_OK;
}

nsa_status load_gates(stage *st, const nsa_tensor *src, const int64_t *tokens, int64_t R) {
    const int64_t row_size = (int64_t)st->c.Hq * BRANCHES, at_once = st->chunk / row_size;
    for (int64_t r = 0; r < R; r += at_once) {
        const int64_t count = R - r < at_once ? R - r : at_once;
        gather(st, src, tokens, r, count, row_size);
        TRY(copy_to_device(st, st->gate + r * row_size, st->host_staging,
                           (size_t)(count * row_size) * sizeof(real)));
    }
    return NSA_OK;
}

/* ---------------------------------------------------------- keys and values */

key_view view_of(const stage *st, const kv_blocks *in, int pair) {
    const dims *c = &st->c;
    return pair == KEYS ? key_view{in->kt, in->k, in->stride, c->Hkv, c->dk, c->dk8, c->dkp}
                        : key_view{in->vt, in->v, in->stride, c->Hkv, c->dv, c->dv8, c->dvp};
}

key_view gradient_view(const stage *st, int branch, int pair) {
    key_view view = view_of(st, &st->in[branch], pair);
    view.t = NULL;
    view.n = pair == KEYS ? st->in[branch].dk : st->in[branch].dv;
    return view;
}

nsa_status zero_blocks(stage *st, const kv_blocks *in) {
    for (int pair = 0; pair < PAIR; pair++) {
        const key_view x = view_of(st, in, pair);
        const size_t keys = (size_t)(x.Hkv * x.stride * BLOCK) * sizeof(real);
        if (x.t)
            NSA_CUDA(cudaMemsetAsync(x.t, 0, keys * (size_t)x.D8, st->stream));
        if (x.n)
            NSA_CUDA(cudaMemsetAsync(x.n, 0, keys * (size_t)x.Dp, st->stream));
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
        const int64_t token_size = (int64_t)view.Hkv * view.D, at_once = st->chunk / token_size;
        for (int64_t t = 0; t < count; t += at_once) {
            const int64_t n = count - t < at_once ? count - t : at_once;
            TRY(upload(st, st->dev_staging, &in->at[NSA_K_CMP + source * PAIR + i % PAIR],
                       t * token_size, n * token_size));
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
            sq->first[x] = first[x];
            first[x] += ((x == CMP ? sq->n_cmp : sq->len) + BLOCK - 1) / BLOCK;
        }
        for (int64_t t = 0; t < sq->len; t++)
            st->host_key[sq->token + t] = sq->first[RAW] * BLOCK + t;
        for (int64_t i = 0; i < sq->n_cmp; i++) {
            st->host_cmp.first[sq->cmp + i] = sq->first[RAW] * BLOCK + i * st->cfg.cmp_stride;
            st->host_cmp.key[sq->cmp + i] = sq->first[CMP] * BLOCK + i;
        }
    }
}

/* Group the rows into tiles of neighbours of one sequence; copy these, positions and sequences. */
static nsa_status make_tiles(stage *st) {
    const nsa_batch *batch = &st->batch;
    const size_t R = (size_t)batch->R;
    int64_t n = 0;
    for (int64_t r = 0, b = 0; r < batch->R; r++) {
        tile_of_rows *tiles = st->host_tiles;
        while (batch->row[r] >= batch->seq[b + 1])
            b++;
        st->host_rows[r] = (int32_t)(batch->row[r] - batch->seq[b]);
        if (n && tiles[n - 1].sequence == b && tiles[n - 1].count < st->warps)
            tiles[n - 1].count++;
        else
            tiles[n++] = tile_of_rows{r, 1, (int32_t)b};
    }
    st->n_tiles = n;
    TRY(copy_to_device(st, st->row_t, st->host_rows, R * sizeof *st->row_t));
    for (int64_t i = 0; i < n; i++) {
        for (int64_t r = 0; r < st->host_tiles[i].count; r++)
            st->host_rows[st->host_tiles[i].first + r] = st->host_tiles[i].sequence;
    }
    TRY(copy_to_device(st, st->row_seq, st->host_rows, R * sizeof *st->row_seq));
    TRY(copy_to_device(st, st->row_token, batch->row, R * sizeof *st->row_token));
    return copy_to_device(st, st->tiles, st->host_tiles, (size_t)n * sizeof *st->tiles);
}

static nsa_status load_weights(stage *st, const nsa_tensors *in) {
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        const nsa_id id = (nsa_id)(NSA_PHI_FIRST + i);
        if (nsa_has(&st->cfg, id))
            TRY(upload(st, st->phi[i / WEIGHTS][i % WEIGHTS], &in->at[id], 0,
                       weight_count(st, i / WEIGHTS, i % WEIGHTS)));
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
    TRY(make_tiles(st));
    if (batch->block_idx)
        TRY(copy_to_device(st, st->forced_idx, batch->block_idx, idx_bytes));
    TRY(load_rows(st, &in->at[NSA_Q], batch->row, batch->R, c->dk, st->q_t, st->q_n));
    TRY(load_gates(st, &in->at[NSA_GATE], batch->row, batch->R));
    for (int x = SLC; x < LAYOUTS; x++)
        TRY(zero_blocks(st, &st->in[x]));
    TRY(load_keys(st, in, st->key, batch->T, st->in));
    TRY(load_weights(st, in));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

nsa_status load_dout(void *self, const nsa_tensor *dout) {
    stage *st = (stage *)self;
    TRY(load_rows(st, dout, st->batch.row, st->batch.R, st->c.dv, st->dout_t, st->dout_n));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}
