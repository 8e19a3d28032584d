/** @file
 *  @brief Compression (Eq. 7): at every d-th token, l tokens become one key and one value. */
#include "compress.cuh"

/* y = mean_r x_r, stored as key number key[i]. One element of y a thread. */
static __global__ void phi_mean(key_spans x, const int64_t *key, key_view to) {
    const int64_t count = x.count * to.Hkv * to.D;
    for (int64_t i = nsa_first(); i < count; i += nsa_grid_threads()) {
        const int64_t m = i / to.D;
        const int c = (int)(i % to.D);
        float sum = 0;
        for (int r = 0; r < x.l; r++)
            sum += span_element(&x, m, r, c);
        store_key(&to, m % to.Hkv, key[m / to.Hkv], c, sum / (float)x.l);
    }
}

/* y = sum_r a_r x_r. Grid: spans. Block: one warp, for one y. Shared: a [l], 1 KiB. */
static __global__ void __launch_bounds__(WARP_SIZE)
    phi_gated(key_spans x, const real *w, const real *b, const int64_t *key, key_view to) {
    __shared__ float s_a[MAX_BLOCK_LEN];
    const int64_t m = blockIdx.x;
    gated_weights(&x, m, w, b, s_a);
    for (int c = (int)threadIdx.x; c < to.D; c += WARP_SIZE) {
        float y = 0;
        for (int r = 0; r < x.l; r++)
            y += s_a[r] * span_element(&x, m, r, c);
        store_key(&to, m % to.Hkv, key[m / to.Hkv], c, y);
    }
}

/* Grid: spans. Block: 128 threads, for one span. */
static __global__ void __launch_bounds__(SPAN_THREADS) gather_kernel(key_spans x, real *to) {
    const int64_t m = blockIdx.x;
    const int D = x.in.D, lD = x.l * D;
    if (x.g_rows && m >= *x.g_rows)
        return;
    for (int i = (int)threadIdx.x; i < lD; i += SPAN_THREADS)
        to[m * lD + i] = span_element(&x, m, i / D, i % D) + (x.pe ? x.pe[i] : 0);
}

/* silu(u) = u sg, silu'(u) = sg (1 + u (1 - sg)), sg = 1/(1 + e^-u). One element a thread. */
static __global__ void silu_kernel(const real *u, int64_t count, real *h, real *du) {
    for (int64_t i = nsa_first(); i < count; i += nsa_grid_threads()) {
        const float sg = 1 / (1 + expf(-u[i]));
        h[i] = u[i] * sg;
        if (du)
            du[i] *= sg * (1 + u[i] * (1 - sg));
    }
}

/* ----------------------------------------------------------------- host */

/* What `tokens` are compressed from. */
key_spans spans_of(const stage *st, const kv_blocks *in, int pair, const cmp_tokens *tokens) {
    return {view_of(st, &in[RAW], pair), tokens->first, tokens->count, st->c.l,
            st->phi[pair][PE],           tokens->g_rows};
}

nsa_status gather(stage *st, const key_spans *x, real *to) {
    LAUNCH(gather_kernel, (unsigned)(x->count * x->in.Hkv), SPAN_THREADS, 0, st, *x, to);
    return NSA_OK;
}

nsa_status silu(stage *st, const real *u, int64_t count, real *h, real *du) {
    LAUNCH(silu_kernel, nsa_grid(count), NSA_THREADS, 0, st, u, count, h, du);
    return NSA_OK;
}

/* y = W2 silu(u) + b2, u = W1 z + b1, the paper's MLP, where z = vec(x + pe), position-major: a row
 * a span, a batch at a time. u stays for backward. */
static nsa_status phi_mlp(stage *st, int pair, key_spans x, const int64_t *key, key_view to) {
    const compressor_scratch *s = &st->phi_scratch;
    const int64_t D = to.D, lD = x.l * D, H = st->c.hidden, all = x.count;
    real *const *phi = st->phi[pair];
    for (int64_t i = 0; i < all; i += s->batch, x.first += s->batch, key += s->batch) {
        x.count = all - i < s->batch ? all - i : s->batch;
        const int64_t M = x.count * to.Hkv;
        real *u = st->u[pair] + i * to.Hkv * H;
        TRY(gather(st, &x, s->z));
        TRY(matmul_plus(st, {M, H, lD, x.g_rows}, rows_of(s->z, lD), columns_of(phi[W1], lD),
                        rows_of(u, H), repeat_row(phi[B1])));
        TRY(silu(st, u, M * H, s->h, NULL));
        TRY(matmul_plus(st, {M, D, H, x.g_rows}, rows_of(s->h, H), columns_of(phi[W2], H),
                        rows_of(s->y, D), repeat_row(phi[B2])));
        TRY(pack_keys(st, {s->y, NSA_F32, NULL, 0}, key, 0, x.count, to));
    }
    return NSA_OK;
}

/* Keys and values of the compressed tokens listed, from the blocks in[RAW] to in[CMP]. */
nsa_status compress(stage *st, const kv_blocks *in, const cmp_tokens *tokens) {
    for (int pair = 0; pair < PAIR && tokens->count; pair++) {
        const key_spans x = spans_of(st, in, pair, tokens);
        const key_view to = view_of(st, &in[CMP], pair);
        const int64_t M = tokens->count * to.Hkv;
        if (st->cfg.phi == NSA_PHI_MLP)
            TRY(phi_mlp(st, pair, x, tokens->key, to));
        else if (st->cfg.phi == NSA_PHI_MEAN)
            LAUNCH(phi_mean, nsa_grid(M * to.D), NSA_THREADS, 0, st, x, tokens->key, to);
        else
            LAUNCH(phi_gated, (unsigned)M, WARP_SIZE, 0, st, x, st->phi[pair][W], st->phi[pair][B],
                   tokens->key, to);
    }
    return NSA_OK;
}

/* Compress every block that lies completely in its sequence; a shorter tail is never compressed.
 * With NSA_DEBUG_MEMORY the blocks were poisoned, and their padding must be zero. */
nsa_status compress_pack(stage *st) {
    TRY(zero_blocks(st, &st->in[CMP]));
    return compress(st, st->in, &st->cmp);
}

/* Allocate scratch for a batch of compressed tokens: as many as a bounded size allows.
 * NSA_DEBUG_MEMORY makes batches short, so that small tensors take several too. */
nsa_status open_compress(stage *st) {
    const nsa_config *c = &st->cfg;
    const unsigned flags = st->plan->setup.flags;
    const int mlp = c->phi == NSA_PHI_MLP, backward = (flags & NSA_BACKWARD) != 0;
    const int64_t D = c->qk_dim > c->v_dim ? c->qk_dim : c->v_dim, lD = c->cmp_block * D;
    const int64_t units = mlp ? c->phi_hidden : c->cmp_block, row = lD > units ? lD : units;
    const int64_t max_batch = ((int64_t)64 << 20) / (c->kv_heads * row);
    int64_t N = st->plan->max_cmp;
    if ((flags & NSA_DECODE) && N < c->max_seqs)
        N = c->max_seqs; /* a decode step may complete one in each slot */
    compressor_scratch *s = &st->phi_scratch;
    s->batch = flags & NSA_DEBUG_MEMORY ? (int64_t)SHORT_BATCH : max_batch < 1 ? 1 : max_batch;
    s->batch = s->batch < N ? s->batch : N;
    const int64_t M = mlp || backward ? s->batch * c->kv_heads : 0;
    alloc(st, &s->y, NSA_MEM_SCRATCH, M * D);
    alloc(st, &s->z, NSA_MEM_SCRATCH, c->phi == NSA_PHI_MEAN ? 0 : M * lD);
    alloc(st, &s->h, NSA_MEM_SCRATCH, mlp ? M * units : 0);
    alloc(st, &s->du, NSA_MEM_SCRATCH, backward ? M * units : 0);
    alloc(st, &s->partials, NSA_MEM_SCRATCH, backward ? SUM_PARTIALS * row : 0);
    for (int pair = 0; pair < PAIR && mlp; pair++)
        alloc(st, &st->u[pair], NSA_MEM_FORWARD, N * c->kv_heads * c->phi_hidden);
    return NSA_OK;
}
