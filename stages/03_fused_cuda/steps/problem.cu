/** @file
 *  @brief The problem of all steps: inputs, a float64 reference, and counts of keys and blocks. */
#include "steps.cuh"

#include "harness/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Only large, short-lived memory is freed; the end of the program frees the rest. */
void *allocate(int64_t count, size_t size) {
    void *at = calloc((size_t)count, size);
    if (!at) {
        fprintf(stderr, "steps: no memory for %lld times %zu bytes\n", (long long)count, size);
        exit(2);
    }
    return at;
}

/* ------------------------------------------------------------------- inputs */

/* n normal numbers, none of them 0, because a product with 0 would hide a wrong factor. */
static float *draw(int64_t n, uint64_t *random) {
    float *x = (float *)allocate(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        while (x[i] == 0)
            x[i] = random_normal(random);
    }
    return x;
}

/* For each query its own block and n-1 earlier ones, every set equally likely, ascending (Knuth's
 * algorithm S): block j is taken with probability (still needed)/(still to come). */
static int32_t *select_blocks(int T, int n, uint64_t *random) {
    int32_t *idx = (int32_t *)allocate((int64_t)T * n, sizeof *idx);
    for (int t = 0; t < T; t++) {
        const int own = t / BLOCK;
        int left = own < n - 1 ? own : n - 1;
        int32_t *next = idx + (int64_t)t * n, *end = next + n;
        for (int j = 0; j < own; j++) {
            if (random_uniform(random) * (float)(own - j) < (float)left && left > 0) {
                *next++ = j;
                left--;
            }
        }
        *next++ = own;
        while (next < end)
            *next++ = -1;
    }
    return idx;
}

/* Device memory, with a copy of `from` if that is not NULL. */
static nsa_status copy_to_device(const void *from, int64_t bytes, void **to) {
    NSA_CUDA(cudaMalloc(to, (size_t)bytes));
    if (from)
        NSA_CUDA(cudaMemcpy(*to, from, (size_t)bytes, cudaMemcpyHostToDevice));
    return NSA_OK;
}

/* Pack one branch's keys and values into blocks. The last block's tail is NaN: a step that uses it
 * fails. */
static nsa_status pack_blocks(const host *h, int T, int branch, problem *pb) {
    const int64_t padded = ((int64_t)T + BLOCK - 1) / BLOCK * BLOCK, bytes = padded * D * 4;
    float *kt = (float *)allocate(padded * D, sizeof *kt),
          *v = (float *)allocate(padded * D, sizeof *v);
    for (int64_t t = 0; t < padded; t++) {
        for (int64_t c = 0; c < D; c++) {
            kt[t / BLOCK * BLOCK * D + c * BLOCK + t % BLOCK] =
                t < T ? h->k[branch][t * D + c] : NAN;
            v[t * D + c] = t < T ? h->v[branch][t * D + c] : NAN;
        }
    }
    TRY(copy_to_device(kt, bytes, (void **)&pb->kt[branch]));
    TRY(copy_to_device(v, bytes, (void **)&pb->v[branch]));
    free(kt);
    free(v);
    return NSA_OK;
}

/* n and w are the paper's from T = 2048 on; a shorter problem has less of both, so that there are
 * always blocks that are not selected, and tokens before a window. */
nsa_status make_problem(int T, host *h, problem *pb) {
    uint64_t random = random_seed("steps of 03_fused_cuda");
    const int64_t floats = (int64_t)T * G * D, gates = (int64_t)T * G * BRANCHES;
    memset(pb, 0, sizeof *pb);
    pb->T = T;
    pb->n = max(1, min(16, T / 100));
    pb->w = max(1, min(512, T / 3));
    pb->scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    h->q = draw(floats, &random);
    h->gate = (float *)allocate(gates, sizeof *h->gate);
    for (int64_t i = 0; i < gates; i++) /* between 0 and 1, exclusive */
        h->gate[i] = i % BRANCHES == CMP ? NAN : (random_uniform(&random) + 1) / 3;
    h->idx = select_blocks(T, pb->n, &random);
    TRY(copy_to_device(h->q, floats * 4, (void **)&pb->q));
    TRY(copy_to_device(h->gate, gates * 4, (void **)&pb->gate));
    TRY(copy_to_device(h->idx, (int64_t)T * pb->n * 4, (void **)&pb->idx));
    for (int branch = SLC; branch <= WIN; branch++) {
        h->k[branch] = draw((int64_t)T * D, &random);
        h->v[branch] = draw((int64_t)T * D, &random);
        TRY(pack_blocks(h, T, branch, pb));
        TRY(copy_to_device(NULL, floats * 4, (void **)&pb->o[branch]));
    }
    return copy_to_device(NULL, floats * 4, (void **)&pb->out);
}

/* ------------------------------------------------------------ answer, counts */

/* Does query t see token s? */
static bool sees(const problem *pb, const host *h, int branch, int t, int s) {
    const int32_t *idx = h->idx + (int64_t)t * pb->n;
    bool found = branch == WIN && s > t - pb->w;
    for (int i = 0; branch == SLC && i < pb->n; i++)
        found |= idx[i] == s / BLOCK;
    return found && s <= t;
}

/* out [D] += gate times one branch's attention of one row, in float64. p [t+1] is scratch. */
static void accumulate_gated(const problem *pb, const host *h, int branch, int t, int g, double *p,
                             double *out) {
    const float *q = h->q + row_of(t, g) * D, *k = h->k[branch], *v = h->v[branch];
    const double gate = (double)h->gate[row_of(t, g) * BRANCHES + branch];
    double row_max = -INFINITY, row_sum = 0;
    for (int64_t s = 0; s <= t; s++) {
        p[s] = sees(pb, h, branch, t, (int)s) ? 0 : -INFINITY;
        for (int c = 0; c < D && p[s] != -INFINITY; c++)
            p[s] += (double)q[c] * (double)k[s * D + c] / sqrt((double)D);
        row_max = p[s] > row_max ? p[s] : row_max;
    }
    for (int64_t s = 0; s <= t; s++) {
        p[s] = exp(p[s] - row_max);
        row_sum += p[s];
    }
    for (int64_t s = 0; s <= t; s++) {
        for (int c = 0; c < D && p[s] != 0; c++)
            out[c] += gate * p[s] / row_sum * (double)v[s * D + c];
    }
}

double rms_diff_float64(const problem *pb, const host *h, const float *out) {
    const int T = pb->T, rows[] = {0,     1,     BLOCK - 1, BLOCK,         pb->w - 1, pb->w,
                                   T / 3, T / 2, T - BLOCK, T - BLOCK + 1, T - 2,     T - 1};
    double *p = (double *)allocate(T, sizeof *p), rms_diff = 0, all = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const int t = max(0, min(T - 1, rows[i]));
        for (int g = 0; g < G; g++) {
            double answer[D] = {0};
            accumulate_gated(pb, h, SLC, t, g, p, answer);
            accumulate_gated(pb, h, WIN, t, g, p, answer);
            for (int c = 0; c < D; c++) {
                const double d = (double)out[row_of(t, g) * D + c] - answer[c];
                rms_diff += d * d;
                all += answer[c] * answer[c];
            }
        }
    }
    free(p);
    return sqrt(rms_diff / all);
}

counts count(const problem *pb, const host *h) {
    counts n = {};
    const int T = pb->T;
    for (int t = 0; t < T; t++) {
        const int32_t *idx = h->idx + (int64_t)t * pb->n;
        const int first = max(t - pb->w + 1, 0);
        n.keys[WIN] += (double)(t + 1 - first);
        n.blocks[WIN] += (double)(t / BLOCK - first / BLOCK + 1);
        if (t % NEIGHBOURS == 0)
            n.shared += (double)(min(t + NEIGHBOURS - 1, T - 1) / BLOCK - first / BLOCK + 1);
        if (t % WARP_SIZE == 0)
            n.warp_keys += (double)(min(t + WARP_SIZE, T) - first);
        for (int i = 0; i < pb->n && idx[i] >= 0; i++) {
            n.keys[SLC] += (double)min(t + 1 - idx[i] * BLOCK, BLOCK);
            n.blocks[SLC]++;
        }
    }
    return n;
}
