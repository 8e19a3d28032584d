/** @file
 *  @brief The chain `decode`: makes its problem, runs its steps, and computes rows in float64. */
#include "problem.cuh"

#include "harness/random.h"

/* Decode steps of one run: at the default T they read 100 MB of the caches' 268. */
enum { TOKENS = 16, SAMPLE_EVERY = 7 };

static problem pb; /* q, t, idx, gate and out have TOKENS for a first dimension */

/* On the host: k and v [SLOTS,slot_blocks*BLOCK,D]. */
static float *q, *gate, *k[BRANCHES], *v[BRANCHES];
static int32_t *idx, *t;

static const char *const what[] = {
    "stage 02's tile of one query: a warp a slot",
    "keys split over CUDA blocks, splits combined",
    "4 warps a split, combined in shared memory",
};

static nsa_status (*const steps[])(const problem *) = {
    decode_0_slot,
    decode_1_splits,
    decode_2_warps,
};

/* Step i of the run. */
static problem decode_step(int i) {
    problem step = pb;
    step.t += i * SLOTS;
    step.q += i * SLOTS * G * D;
    step.gate += i * SLOTS * G * BRANCHES;
    step.idx += i * SLOTS * pb.n;
    step.out += i * SLOTS * G * D;
    return step;
}

/* Keys or values of all slots: random up to the last position, NaN after it: nothing may come of
 * those. */
static float *draw_cache(uint64_t *random) {
    const int64_t len = (int64_t)pb.slot_blocks * BLOCK;
    float *x = draw(SLOTS * len * D, random);
    for (int64_t row = 0; row < SLOTS * len; row++) {
        for (int c = 0; c < D && row % len > t[(TOKENS - 1) * SLOTS + row / len]; c++)
            x[row * D + c] = NAN;
    }
    return x;
}

/* Sequences of T, 2 T, ... 8 T tokens before the run. n and w are the paper's from T = 256 on; a
 * shorter problem has less of both. */
static void make(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = TOKENS * SLOTS * G;
    pb = {};
    pb.n = max(1, min(16, T / 12));
    pb.w = min(512, 2 * T);
    pb.slot_blocks = (SLOTS * T + TOKENS + BLOCK - 1) / BLOCK;
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    t = (int32_t *)allocate(TOKENS * SLOTS, sizeof *t);
    idx = (int32_t *)allocate((int64_t)TOKENS * SLOTS * pb.n, sizeof *idx);
    for (int a = 0; a < TOKENS * SLOTS; a++) {
        t[a] = T * (a % SLOTS + 1) + a / SLOTS;
        draw_blocks(idx + (int64_t)a * pb.n, pb.n, t[a], &random);
    }
    q = draw(rows * D, &random);
    gate = (float *)allocate(rows * BRANCHES, sizeof *gate);
    for (int64_t i = 0; i < rows * BRANCHES; i++) /* between 0 and 1, exclusive */
        gate[i] = i % BRANCHES == CMP ? NAN : (random_uniform(&random) + 1) / 3;
    pb.t = (int32_t *)copy_to_device(t, TOKENS * SLOTS, sizeof *t);
    pb.idx = (int32_t *)copy_to_device(idx, (int64_t)TOKENS * SLOTS * pb.n, sizeof *idx);
    pb.q = (float *)copy_to_device(q, rows * D, sizeof *q);
    pb.gate = (float *)copy_to_device(gate, rows * BRANCHES, sizeof *gate);
    for (int branch = SLC; branch <= WIN; branch++) {
        k[branch] = draw_cache(&random);
        v[branch] = draw_cache(&random);
        pb.kt[branch] = transposed_blocks(k[branch], (int64_t)SLOTS * pb.slot_blocks * BLOCK);
        pb.v[branch] = natural_blocks(v[branch], (int64_t)SLOTS * pb.slot_blocks * BLOCK);
    }
    const int64_t splits = SLOTS * BRANCHES * MAX_SPLITS;
    pb.split_o = (float *)device_output(splits * G * D, sizeof(float));
    pb.split_stats = (partial_stats *)device_output(splits * G, sizeof(partial_stats));
    pb.out = (float *)device_output(rows * D, sizeof(float));
}

static nsa_status run(int step) {
    for (int i = 0; i < TOKENS; i++) {
        const problem one = decode_step(i);
        TRY(steps[step](&one));
    }
    return NSA_OK;
}

static void *result(int64_t *bytes) {
    *bytes = TOKENS * SLOTS * G * D * (int64_t)sizeof(float);
    return pb.out;
}

/* ------------------------------------------------------------------ float64 */

/* Does row `a` of the run see token s? */
static bool sees(int branch, int a, int s) {
    bool found = branch == WIN && s > t[a] - pb.w;
    for (int i = 0; branch == SLC && i < pb.n; i++)
        found |= idx[(int64_t)a * pb.n + i] == s / BLOCK;
    return found && s <= t[a];
}

/* out [D] += gate times one branch's attention of head g of row a, in float64. */
static void accumulate_gated(int branch, int a, int g, double *out) {
    const int64_t row = (int64_t)a * G + g, first = (int64_t)(a % SLOTS) * pb.slot_blocks * BLOCK;
    double o[D] = {0}, row_sum = 0;
    for (int s = 0; s <= t[a]; s++) {
        double score = 0;
        if (!sees(branch, a, s))
            continue;
        for (int c = 0; c < D; c++)
            score += (double)q[row * D + c] * (double)k[branch][(first + s) * D + c];
        const double e = exp(score / sqrt((double)D)); /* scores are small here */
        row_sum += e;
        for (int c = 0; c < D; c++)
            o[c] += e * (double)v[branch][(first + s) * D + c];
    }
    for (int c = 0; c < D; c++)
        out[c] += (double)gate[row * BRANCHES + branch] * o[c] / row_sum;
}

/* Rows of all decode steps, slots and heads: the worst. */
static double error(const void *first) {
    double worst = 0;
    for (int row = 0; row < TOKENS * SLOTS * G; row += SAMPLE_EVERY) {
        double reference[D] = {0};
        accumulate_gated(SLC, row / G, row % G, reference);
        accumulate_gated(WIN, row / G, row % G, reference);
        worst = larger(worst, relative_rms((const float *)first + (int64_t)row * D, reference, D));
    }
    return worst;
}

static double difference(const void *out, const void *first) {
    return relative_rms_float((const float *)out, (const float *)first, TOKENS * SLOTS * G * D);
}

extern const chain chain_decode = {
    "decode", what,       sizeof steps / sizeof *steps, 4096, {1e-5, 1e-5}, make, run, result,
    error,    difference,
};
