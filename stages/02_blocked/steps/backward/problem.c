/** @file
 *  @brief The chain `backward`: makes its problem, runs its steps, computes gradients in float64.
 */
#include "problem.h"

#include "harness/random.h"

#include <omp.h>

enum { SAMPLED = 8, SAMPLES = SAMPLED * G * (D + 1) + PAIR * BLOCK * D };

static problem pb;

static const char *const what[] = {
    "stage 01: a head attends again",      "p from saved row_max and inv_sum",
    "a block to all heads of its group",   "blocks, transposed: five products",
    "tiles of 64 queries, block by block", "threads, each with its own dk and dv",
};

static void (*const steps[])(const problem *) = {
    backward_0_rows,     backward_1_saved, backward_2_group,
    backward_3_products, backward_4_tiles, backward_5_threads,
};

/* What forward saves of the group of the query at t: o, row_max and inv_sum. */
static void forward(int64_t t) {
    static real s[G * SLC_COUNT * BLOCK];
    const int64_t stride = SLC_COUNT * BLOCK;
    const int32_t *idx = pb.block_idx + t * SLC_COUNT;
    int64_t n = 0, keys;
    for (; n < SLC_COUNT && idx[n] >= 0; n++)
        matmul(G, BLOCK, D, rows_of(pb.q + t * G * D, D),
               rows_of(pb.transposed[KEYS] + (int64_t)idx[n] * BLOCK * D, BLOCK),
               rows_of(s + n * BLOCK, stride));
    keys = (n - 1) * BLOCK + t % BLOCK + 1; /* the own block is the last */
    for (int64_t head = t * G; head < (t + 1) * G; head++) {
        real *p = s + head % G * stride, row_max = -INFINITY, row_sum = 0;
        for (int64_t j = 0; j < keys; j++)
            row_max = p[j] > row_max ? p[j] : row_max;
        for (int64_t j = 0; j < keys; j++)
            row_sum += p[j] = expf(pb.scale * (p[j] - row_max));
        for (int64_t j = 0; j < keys; j++)
            p[j] /= row_sum;
        pb.stats[2 * head] = row_max;
        pb.stats[2 * head + 1] = 1 / row_sum;
    }
    for (int64_t i = 0; i < n; i++)
        matmul_add(G, D, i < n - 1 ? BLOCK : t % BLOCK + 1, rows_of(s + i * BLOCK, stride),
                   rows_of(pb.v + (int64_t)idx[i] * BLOCK * D, D),
                   rows_of(pb.out_x + t * G * D, D));
}

/* The results lie one after the other: dq, dgate, dk, dv. */
static void make(int64_t T) {
    uint64_t random = random_seed(SEED);
    int32_t *idx = allocate(T * SLC_COUNT, sizeof *idx);
    const int64_t blocks = (T + BLOCK - 1) / BLOCK, threads = omp_get_max_threads();
    pb = (problem){.T = T, .blocks = blocks, .threads = (int)threads, .scale = 1 / sqrtf(D)};
    pb.block_idx = idx;
    pb.q = draw(T * G * D, &random);
    pb.k = draw(T * D, &random);
    pb.v = draw(T * D, &random);
    pb.dout = draw(T * G * D, &random);
    pb.gate = allocate(T * G, sizeof *pb.gate);
    for (int64_t head = 0; head < T * G; head++)
        pb.gate[head] = random_uniform(&random);
    pb.transposed[KEYS] = transposed_blocks(pb.k, T, D);
    pb.transposed[VALUES] = transposed_blocks(pb.v, T, D);
    pb.natural[KEYS] = natural_blocks(pb.k, T, D);
    pb.out_x = allocate(T * G * D, sizeof *pb.out_x);
    pb.stats = allocate(T * G * 2, sizeof *pb.stats);
    for (int64_t t = 0; t < T; t++) {
        draw_blocks(idx + t * SLC_COUNT, SLC_COUNT, t, &random);
        forward(t);
    }
    pb.dq = allocate(T * G * (D + 1) + threads * PAIR * blocks * BLOCK * D, sizeof *pb.dq);
    pb.dgate = pb.dq + T * G * D;
    pb.gradient[KEYS] = pb.dgate + T * G;
    pb.gradient[VALUES] = pb.gradient[KEYS] + blocks * BLOCK * D;
    for (int64_t i = 0; i < (threads - 1) * PAIR * blocks * BLOCK * D; i++)
        pb.gradient[VALUES][blocks * BLOCK * D + i] = NAN; /* the other threads': to be zeroed */
}

static void run(int step) {
    steps[step](&pb);
}

static real *result(int64_t *count) {
    *count = pb.T * G * (D + 1) + PAIR * pb.blocks * BLOCK * D;
    return pb.dq;
}

static int sees(int64_t t, int64_t block) {
    int found = 0;
    for (int i = 0; i < SLC_COUNT; i++)
        found |= pb.block_idx[t * SLC_COUNT + i] == block;
    return found;
}

/* dk and dv of a block at three quarters of the text, from all queries that see it, and dq and
 * dgate of queries from the first to the last. All in one, as the results are: none of them is
 * small beside the others. dk and dv are sums over thousands of rows, so 1e-6 is float32's. */
static double error(void) {
    static double reference[SAMPLES];
    static real x[SAMPLES];
    const int64_t block = (pb.T - 1) * 3 / 4 / BLOCK, pair = BLOCK * D;
    double dq[D], dgate;
    int64_t n = PAIR * pair;
    memset(reference, 0, sizeof reference);
    memcpy(x, pb.gradient[KEYS] + block * pair, (size_t)pair * sizeof *x);
    memcpy(x + pair, pb.gradient[VALUES] + block * pair, (size_t)pair * sizeof *x);
    for (int64_t t = 0, next = 0; t < pb.T; t++) {
        const int sampled = t == (pb.T - 1) * next / (SAMPLED - 1);
        next += sampled;
        for (int64_t head = t * G; head < (t + 1) * G && (sampled || sees(t, block)); head++) {
            backward_float64(&pb, head, block, dq, &dgate, reference);
            if (!sampled)
                continue;
            memcpy(x + n, pb.dq + head * D, D * sizeof *x);
            memcpy(reference + n, dq, sizeof dq);
            x[n + D] = pb.dgate[head];
            reference[n + D] = dgate;
            n += D + 1;
        }
    }
    return relative_rms(x, reference, n);
}

const chain chain_backward = {
    .name = "backward",
    .what = what,
    .n_steps = sizeof steps / sizeof *steps,
    .default_T = 4096,
    .make = make,
    .run = run,
    .result = result,
    .error = error,
    .free = release,
};
