/** @file
 *  @brief Inputs into the stage's layouts: kernels read the caller's tensor on the device, or what
 *  a transfer of the host's has brought. Q, dO, K and V become rows of bfloat16, padded with zeros:
 *  of heads in tiles of 16, or of keys in blocks of 64. */
#include "load.cuh"

/* Where rows of all heads go: [row tiles][16][Dp], in mem tiles. */
typedef struct row_view {
    bf16 *rows;
    int D, Dp;
} row_view;

/* ------------------------------------------------------------ the layouts */

/* A piece of row `row` of x [rows,D], from column `col` on; zeros past its end. */
static __device__ __forceinline__ uint4 load_piece(const nsa_source *x, int64_t row, int D,
                                                   int col) {
    float v[PIECE];
    for (int i = 0; i < PIECE; i++)
        v[i] = col + i < D ? nsa_element(x->data, x->dtype, row * D + col + i) : 0;
    return make_uint4(nsa_pack_bf16(v[0], v[1]), nsa_pack_bf16(v[2], v[3]),
                      nsa_pack_bf16(v[4], v[5]), nsa_pack_bf16(v[6], v[7]));
}

/* Pieces of a row of D elements. */
static __host__ __device__ __forceinline__ int pieces_of(int D) {
    return (D + PIECE - 1) / PIECE;
}

/* x [rows,Hq,D], from result row `row` on -> row tiles. Padding stays zero. One piece a thread:
 * divisions of 64 bits cost more than its eight elements. */
static __global__ void pack_rows_kernel(dims c, nsa_source x, int64_t row, int64_t count,
                                        row_view to) {
    const int pieces = pieces_of(to.D);
    for (int64_t i = nsa_first(); i < count * c.Hq * pieces; i += nsa_grid_threads()) {
        const int64_t r = row + i / pieces / c.Hq;
        const int head = (int)(i / pieces % c.Hq), g = head % c.G, col = (int)(i % pieces) * PIECE;
        const int64_t tile = (r * c.Hkv + head / c.G) * c.GT + g / TILE_ROWS;
        *(uint4 *)(to.rows + mem_offset(tile * TILE_ROWS + g % TILE_ROWS, col, to.Dp)) =
            load_piece(&x, nsa_source_row(&x, r) * c.Hq + head, to.D, col);
    }
}

/* x [rows,Hkv,D], from row `row` on -> blocks: row i of the tensor is key number g_key[i], or none
 * if that is -1. One piece a thread. */
static __global__ void pack_keys_kernel(nsa_source x, const int64_t *g_key, int64_t row,
                                        int64_t count, key_view to) {
    const int pieces = pieces_of(to.D);
    for (int64_t i = nsa_first(); i < count * to.Hkv * pieces; i += nsa_grid_threads()) {
        const int64_t r = row + i / pieces / to.Hkv, key = g_key[r];
        const int h = (int)(i / pieces % to.Hkv), col = (int)(i % pieces) * PIECE;
        if (key >= 0)
            *(uint4 *)element_at(&to, h, key, col) =
                load_piece(&x, nsa_source_row(&x, r) * to.Hkv + h, to.D, col);
    }
}

/* x = x rounded to bfloat16. One element a thread. */
static __global__ void round_kernel(real *x, int64_t count) {
    for (int64_t i = nsa_first(); i < count; i += nsa_grid_threads())
        x[i] = __bfloat162float(__float2bfloat16_rn(x[i]));
}

/* --------------------------------------------------------------- inputs */

static nsa_status load_rows(stage *st, nsa_rows src, row_view to) {
    nsa_source from;
    for (int64_t r = 0, n; r < src.count; r += n) {
        TRY(nsa_find_rows(&st->streams, &st->staging, &src, r, &n, &from));
        LAUNCH(pack_rows_kernel, nsa_grid(n * st->c.Hq * pieces_of(to.D)), NSA_THREADS, 0, st,
               st->c, from, r, n, to);
    }
    return NSA_OK;
}

nsa_status load_queries(stage *st, const nsa_tensors *in, const int64_t *tokens,
                        const int64_t *g_tokens, int64_t R) {
    const dims *c = &st->c;
    TRY(load_rows(st, {&in->at[NSA_Q], tokens, g_tokens, R, (int64_t)c->Hq * c->dk},
                  {st->q, c->dk, c->dkp}));
    return nsa_copy_rows(&st->streams, &st->staging,
                         {&in->at[NSA_GATE], tokens, g_tokens, R, (int64_t)c->Hq * BRANCHES},
                         st->gate);
}

/* ---------------------------------------------------------- keys and values */

key_view view_of(const stage *st, const kv_blocks *in, int pair) {
    const dims *c = &st->c;
    const bool keys = pair == KEYS;
    return {in->rows[pair], in->stride, c->Hkv, keys ? c->dk : c->dv, keys ? c->dkp : c->dvp};
}

gradient_view gradient_view_of(const stage *st, int branch, int pair) {
    const key_view x = view_of(st, &st->in[branch], pair);
    return {st->in[branch].gradient[pair], x.stride, x.Hkv, x.D, x.Dp};
}

nsa_status zero_blocks(stage *st, const kv_blocks *in) {
    for (int pair = 0; pair < PAIR; pair++) {
        const key_view x = view_of(st, in, pair);
        TRY(zero(st, x.rows, x.Hkv * x.stride * BLOCK * x.Dp));
    }
    return NSA_OK;
}

nsa_status pack_keys(stage *st, nsa_source x, const int64_t *key, int64_t row, int64_t count,
                     key_view to) {
    LAUNCH(pack_keys_kernel, nsa_grid(count * to.Hkv * pieces_of(to.D)), NSA_THREADS, 0, st, x, key,
           row, count, to);
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
        LAUNCH(round_kernel, nsa_grid(count), NSA_THREADS, 0, st, st->phi[pair][w], count);
    }
    return make_biases(st);
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
    TRY(make_tiles(st, query_tile(&st->c), st->host_tiles, st->tiles, &st->n_tiles));
    return make_select_tiles(st);
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
                  {st->dout, c->dv, c->dvp}));
    return nsa_stream_finish(&st->streams);
}
