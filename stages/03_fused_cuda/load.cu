/** @file
 *  @brief Copy inputs to the device: each tensor in chunks, which a kernel then packs into its
 *  layout. K and V become stage 02's blocks; Q and dO become row tiles, the A of the tile
 *  product. */
#include "load.cuh"

enum { THREADS = 256 };

/* Grid of all kernels here: CUDA blocks of THREADS for `count` elements, up to the limit of a grid.
 * Each thread has one element and every grid-th after it; none has shared memory. */
static unsigned blocks_for(int64_t count) {
    const int64_t blocks = (count + THREADS - 1) / THREADS;
    return (unsigned)(blocks < 1 ? 1 : blocks > 1 << 20 ? 1 << 20 : blocks);
}

static __device__ __forceinline__ int64_t first_of_thread(void) {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t threads_of_grid(void) {
    return (int64_t)gridDim.x * blockDim.x;
}

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

/* g_src [count,Hkv,D], positions t.. of a sequence whose first block is `first` -> blocks,
 * transposed g_t [D8][64] and natural g_n [64][Dp]; either may be NULL. One element a thread. */
static __global__ void pack_keys_kernel(const real *g_src, int Hkv, int64_t stride, int64_t first,
                                        int64_t t, int64_t count, int D, int D8, int Dp, real *g_t,
                                        real *g_n) {
    for (int64_t i = first_of_thread(); i < count * Hkv * D; i += threads_of_grid()) {
        const int64_t s = t + i / D / Hkv, block = i / D % Hkv * stride + first + s / BLOCK;
        const int64_t col = i % D;
        if (g_t)
            g_t[(block * D8 + col) * BLOCK + s % BLOCK] = g_src[i];
        if (g_n)
            g_n[(block * BLOCK + s % BLOCK) * Dp + col] = g_src[i];
    }
}

/* The same for one token of each slot: g_src [A,Hkv,D], row a to position g_pos[a] of slot
 * g_slot[a], which has `blocks` blocks. One element a thread. */
static __global__ void append_kernel(const real *g_src, int Hkv, int64_t stride, int64_t blocks,
                                     const int32_t *g_pos, const int32_t *g_slot, int64_t A, int D,
                                     int D8, int Dp, real *g_t, real *g_n) {
    for (int64_t i = first_of_thread(); i < A * Hkv * D; i += threads_of_grid()) {
        const int64_t a = i / D / Hkv, s = g_pos[a], col = i % D;
        const int64_t block = i / D % Hkv * stride + g_slot[a] * blocks + s / BLOCK;
        if (g_t)
            g_t[(block * D8 + col) * BLOCK + s % BLOCK] = g_src[i];
        if (g_n)
            g_n[(block * BLOCK + s % BLOCK) * Dp + col] = g_src[i];
    }
}

/* The same to [slot,capacity,Hkv,D], as the compressors read it. */
static __global__ void append_raw_kernel(const real *g_src, int Hkv, int64_t capacity,
                                         const int32_t *g_pos, const int32_t *g_slot, int64_t A,
                                         int D, real *g_raw) {
    for (int64_t i = first_of_thread(); i < A * Hkv * D; i += threads_of_grid()) {
        const int64_t a = i / D / Hkv;
        g_raw[(g_slot[a] * capacity + g_pos[a]) * Hkv * D + i % (Hkv * D)] = g_src[i];
    }
}

/* g_dst [cols,ld] = g_src [rows,cols] transposed. One element a thread. */
static __global__ void transpose_kernel(const real *g_src, int64_t rows, int64_t cols, int64_t ld,
                                        real *g_dst) {
    for (int64_t i = first_of_thread(); i < rows * cols; i += threads_of_grid())
        g_dst[i % cols * ld + i / cols] = g_src[i];
}

/* -------------------------------------------------------------- transfers */

nsa_status copy_to_device(stage *st, void *to, const void *from, size_t bytes) {
    if (bytes)
        NSA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, st->stream));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

nsa_status upload(stage *st, real *to, const nsa_tensor *src, int64_t first, int64_t count) {
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
    const int D8 = (int)round_up(D, DIM_ALIGN);
    for (int64_t r = 0; r < R; r += at_once) {
        const int64_t count = R - r < at_once ? R - r : at_once;
        gather(st, src, tokens, r, count, row_size);
        TRY(copy_to_device(st, st->dev_staging, st->host_staging,
                           (size_t)(count * row_size) * sizeof(real)));
        NSA_LAUNCH(pack_rows_kernel, blocks_for(count * row_size), THREADS, 0, st->stream, *c,
                   st->dev_staging, r, count, (int)D, D8, c->wp, g_t, g_n);
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

static nsa_status pack_keys(stage *st, const real *src, real *kt, real *nat, int64_t stride,
                            int64_t first, int64_t t, int64_t count, int64_t D) {
    NSA_LAUNCH(pack_keys_kernel, blocks_for(count * st->c.Hkv * D), THREADS, 0, st->stream, src,
               st->c.Hkv, stride, first, t, count, (int)D, (int)round_up(D, DIM_ALIGN),
               (int)round_up(D, TILE_COLS), kt, nat);
    NSA_LAUNCHED("pack_keys");
    return NSA_OK;
}

nsa_status append_keys(stage *st, const nsa_tensor *src, real *kt, real *nat, int64_t stride,
                       int64_t blocks, int64_t A, int64_t D) {
    const int64_t row_size = st->c.Hkv * D, at_once = st->chunk / row_size;
    for (int64_t a = 0; a < A; a += at_once) {
        const int64_t count = A - a < at_once ? A - a : at_once;
        TRY(upload(st, st->dev_staging, src, a * row_size, count * row_size));
        NSA_LAUNCH(append_kernel, blocks_for(count * row_size), THREADS, 0, st->stream,
                   st->dev_staging, st->c.Hkv, stride, blocks, st->row_t + a, st->row_seq + a,
                   count, (int)D, (int)round_up(D, DIM_ALIGN), (int)round_up(D, TILE_COLS), kt,
                   nat);
        NSA_LAUNCHED("append");
    }
    return NSA_OK;
}

nsa_status append_raw(stage *st, const nsa_tensor *src, real *raw, int64_t A, int64_t D) {
    const int64_t row_size = st->c.Hkv * D, at_once = st->chunk / row_size;
    for (int64_t a = 0; a < A; a += at_once) {
        const int64_t count = A - a < at_once ? A - a : at_once;
        TRY(upload(st, st->dev_staging, src, a * row_size, count * row_size));
        NSA_LAUNCH(append_raw_kernel, blocks_for(count * row_size), THREADS, 0, st->stream,
                   st->dev_staging, st->c.Hkv, st->cfg.max_seq_len, st->row_t + a, st->row_seq + a,
                   count, (int)D, raw);
        NSA_LAUNCHED("append_raw");
    }
    return NSA_OK;
}

/* Pack keys or values into blocks; every sequence begins a new one. */
static nsa_status load_keys(stage *st, int branch, const nsa_tensor *src, real *kt, real *nat,
                            int64_t D) {
    const nsa_batch *batch = &st->batch;
    const int64_t token_size = st->c.Hkv * D, at_once = st->chunk / token_size;
    for (int64_t b = 0; b < batch->B; b++) {
        const int64_t len = batch->seq[b + 1] - batch->seq[b];
        for (int64_t t = 0; t < len; t += at_once) {
            const int64_t count = len - t < at_once ? len - t : at_once;
            TRY(upload(st, st->dev_staging, src, (batch->seq[b] + t) * token_size,
                       count * token_size));
            TRY(pack_keys(st, st->dev_staging, kt, nat, st->in[branch].stride,
                          st->host_seqs[b].first[branch], t, count, D));
        }
    }
    return NSA_OK;
}

/* Keys and values of one branch. Padding must be zero; the last load may have left other keys
 * there. */
static nsa_status load_pair(stage *st, int branch, const nsa_tensor *k, const nsa_tensor *v) {
    const kv_blocks *in = &st->in[branch];
    const dims *c = &st->c;
    const size_t keys = (size_t)(c->Hkv * in->stride * BLOCK) * sizeof(real);
    NSA_CUDA(cudaMemsetAsync(in->kt, 0, keys * (size_t)c->dk8, st->stream));
    NSA_CUDA(cudaMemsetAsync(in->v, 0, keys * (size_t)c->dvp, st->stream));
    if (in->k) {
        NSA_CUDA(cudaMemsetAsync(in->k, 0, keys * (size_t)c->dkp, st->stream));
        NSA_CUDA(cudaMemsetAsync(in->vt, 0, keys * (size_t)c->dv8, st->stream));
    }
    TRY(load_keys(st, branch, k, in->kt, in->k, c->dk));
    return load_keys(st, branch, v, in->vt, in->v, c->dv);
}

/* ------------------------------------------------------------------- load */

/* Set where each sequence begins in the blocks, and where its compressed tokens go. */
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
            sq->first[x] = first[x];
            first[x] += ((x == CMP ? sq->n_cmp : sq->len) + BLOCK - 1) / BLOCK;
        }
        for (int64_t i = 0; i < sq->n_cmp; i++) {
            st->host_cmp_coords[sq->cmp + i].token = sq->token + i * st->cfg.cmp_stride;
            st->host_cmp_coords[sq->cmp + i].key = sq->first[CMP] * BLOCK + i;
        }
    }
}

/* Positions and sequences of the rows. */
static nsa_status load_row_coords(stage *st) {
    const nsa_batch *batch = &st->batch;
    const size_t bytes = (size_t)batch->R * sizeof *st->host_rows;
    for (int64_t r = 0, b = 0; r < batch->R; r++) {
        while (batch->row[r] >= batch->seq[b + 1])
            b++;
        st->host_rows[r] = (int32_t)b;
    }
    TRY(copy_to_device(st, st->row_seq, st->host_rows, bytes));
    for (int64_t r = 0; r < batch->R; r++)
        st->host_rows[r] = (int32_t)(batch->row[r] - batch->seq[st->host_rows[r]]);
    return copy_to_device(st, st->row_t, st->host_rows, bytes);
}

/* Group the rows into tiles of up to `rows` neighbours, none of two sequences. */
nsa_status make_tiles(stage *st, int rows, tile_of_rows *tiles, int64_t *n_tiles) {
    const nsa_batch *batch = &st->batch;
    int64_t n = 0;
    for (int64_t r = 0, b = 0; r < batch->R; r++) {
        tile_of_rows *last = n ? &st->host_tiles[n - 1] : NULL;
        while (batch->row[r] >= batch->seq[b + 1])
            b++;
        if (last && last->sequence == b && last->count < rows)
            last->count++;
        else
            st->host_tiles[n++] = tile_of_rows{r, 1, (int32_t)b};
    }
    *n_tiles = n;
    return copy_to_device(st, tiles, st->host_tiles, (size_t)n * sizeof *tiles);
}

static nsa_status load_weights(stage *st, const nsa_tensors *in) {
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        const nsa_id id = (nsa_id)(NSA_PHI_FIRST + i);
        if (nsa_has(&st->cfg, id))
            TRY(upload(st, st->phi[i / WEIGHTS][i % WEIGHTS], &in->at[id], 0,
                       weight_count(st, i / WEIGHTS, i % WEIGHTS)));
    }
    for (int pair = 0; pair < PAIR && st->cfg.phi == NSA_PHI_MLP; pair++) {
        const int64_t D = width(st, pair), lD = st->c.l * D, hidden = st->c.hidden;
        NSA_LAUNCH(transpose_kernel, blocks_for(hidden * lD), THREADS, 0, st->stream,
                   st->phi[pair][W1], hidden, lD, (int64_t)st->c.hp, st->w1t[pair]);
        NSA_LAUNCHED("transpose");
        NSA_LAUNCH(transpose_kernel, blocks_for(hidden * D), THREADS, 0, st->stream,
                   st->phi[pair][W2], D, hidden, round_up(D, TILE_COLS), st->w2t[pair]);
        NSA_LAUNCHED("transpose");
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
    TRY(copy_to_device(st, st->cmp_coords, st->host_cmp_coords,
                       (size_t)batch->N * sizeof *st->cmp_coords));
    TRY(load_row_coords(st));
    TRY(make_tiles(st, st->warps, st->tiles, &st->n_tiles));
    if (st->plan->setup.flags & NSA_BACKWARD)
        TRY(make_grad_tiles(st));
    if (batch->block_idx)
        TRY(copy_to_device(st, st->forced_idx, batch->block_idx, idx_bytes));
    TRY(load_rows(st, &in->at[NSA_Q], batch->row, batch->R, c->dk, st->q_t, st->q_n));
    TRY(load_gates(st, &in->at[NSA_GATE], batch->row, batch->R));
    TRY(upload(st, st->raw[KEYS], &in->at[NSA_K_CMP], 0, batch->T * c->Hkv * c->dk));
    TRY(upload(st, st->raw[VALUES], &in->at[NSA_V_CMP], 0, batch->T * c->Hkv * c->dv));
    TRY(load_pair(st, SLC, &in->at[NSA_K_SLC], &in->at[NSA_V_SLC]));
    TRY(load_pair(st, WIN, &in->at[NSA_K_WIN], &in->at[NSA_V_WIN]));
    if (st->in[RAW].kt)
        TRY(load_pair(st, RAW, &in->at[NSA_K_CMP], &in->at[NSA_V_CMP]));
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
