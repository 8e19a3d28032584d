/** @file
 *  @brief What the compressors' files share: the matrix product, spans of tokens, sums. */
#ifndef COMPRESS_CUH
#define COMPRESS_CUH

#include "load.cuh"

enum {
    SPAN_THREADS = 128,  /* of a CUDA block that works on one span */
    SUM_PARTIALS = 256,  /* partial sums of a long sum over rows; the maximum */
    MAX_BLOCK_LEN = 256, /* l, by the specification */
    SHORT_BATCH = 32     /* compressed tokens */
};

/* A matrix operand: element (i,j) is at[i * row + j * col]. */
typedef struct matrix {
    real *at;
    int64_t row, col;
} matrix;

/* A matrix whose rows are `stride` floats apart, and the transpose of such a matrix. */
static inline matrix rows_of(real *at, int64_t stride) {
    return {at, stride, 1};
}

static inline matrix columns_of(real *at, int64_t stride) {
    return {at, 1, stride};
}

/* Every row of this matrix is x: a bias. */
static inline matrix repeat_row(real *x) {
    return {x, 0, 1};
}

/* Sizes of a product: C [M,N], A [M,K], B [K,N]. */
typedef struct product_size {
    int64_t M, N, K;              /* each below 2^31 */
    const int64_t *g_rows = NULL; /* on the device: how many rows of C are wanted, if not all M */
} product_size;

/* matmul.cu: C = A B + D; D may be C, and is left out if D.at is NULL. Every element is one sum
 * over k, in one order whatever M and N are: equal rows of A give bitwise equal rows of C. */
nsa_status matmul_plus(stage *st, product_size size, matrix a, matrix b, matrix c, matrix d);

static inline nsa_status matmul(stage *st, product_size size, matrix a, matrix b, matrix c) {
    return matmul_plus(st, size, a, b, c, {NULL, 0, 0});
}

static inline nsa_status matmul_add(stage *st, product_size size, matrix a, matrix b, matrix c) {
    return matmul_plus(st, size, a, b, c, c);
}

/* Spans of l neighbouring keys of every head. m = i*Hkv + h numbers span i of head h. */
typedef struct key_spans {
    key_view in;          /* their blocks */
    const int64_t *first; /* [count] index of the first key */
    int64_t count;
    int l;
    const real *pe;               /* [l,D], added to the keys; NULL: nothing is */
    const int64_t *g_rows = NULL; /* as in cmp_tokens */
} key_spans;

/* Element c of row r of span m. */
static __device__ __forceinline__ float span_element(const key_spans *x, int64_t m, int r, int c) {
    return *element_at(&x->in, m % x->in.Hkv, x->first[m / x->in.Hkv] + r, c);
}

/* s_a [l] = softmax_r(w . (x_r + pe_r) + b_r) of span m: the weights depend on the content. Called
 * by one warp. */
static __device__ __forceinline__ void gated_weights(const key_spans *x, int64_t m, const real *w,
                                                     const real *b, float *s_a) {
    const int lane = (int)threadIdx.x;
    float row_max = -INFINITY, row_sum = 0;
    for (int r = 0; r < x->l; r++) {
        float u = 0;
        for (int c = lane; c < x->in.D; c += WARP_SIZE)
            u += w[c] * (span_element(x, m, r, c) + x->pe[r * x->in.D + c]);
        u = warp_reduce_sum(u) + b[r];
        row_max = u > row_max || u != u ? u : row_max; /* NaN, if there is one */
        if (lane == r % WARP_SIZE)                     /* the lane that reads it below */
            s_a[r] = u;
    }
    for (int r = lane; r < x->l; r += WARP_SIZE) {
        s_a[r] = expf(s_a[r] - row_max);
        row_sum += s_a[r];
    }
    row_sum = warp_reduce_sum(row_sum);
    for (int r = lane; r < x->l; r += WARP_SIZE)
        s_a[r] /= row_sum;
    __syncwarp();
}

/* compress.cu */
key_spans spans_of(const stage *st, const kv_blocks *in, int pair, const cmp_tokens *tokens);
/* to [count*Hkv][l*D] = vec(x + pe) of each span, or vec(x) if x->pe is NULL. */
nsa_status gather(stage *st, const key_spans *x, real *to);
/* h = silu(u), `count` elements; du *= silu'(u) unless it is NULL. */
nsa_status silu(stage *st, const real *u, int64_t count, real *h, real *du);

#endif
