/** @file
 *  @brief Check each step against step 0, and step 0 against float64; time those that agree, and
 *  print a table, with the number of bytes that each step moves. */
#include "steps.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 11, STEPS = 5, CELLS = 9, MAX_TOKENS = 1 << 20 };

static const double TOLERANCE = 1e-5; /* 1024 float32 terms in another order: about 1e-6 */

#ifdef NSA_SIMT
static const bool TIMED = false; /* its times say nothing about a GPU */
static const int DEFAULT_T = 201;
#else
static const bool TIMED = true;
static const int DEFAULT_T = 16384;
#endif

/* How often a key or a block is sent to a multiprocessor: for each row that sees it, or once for
 * the rows that share it. */
enum { KEY_PER_ROW, KEY_PER_WARP, BLOCK_PER_ROW, BLOCK_PER_QUERY, BLOCK_PER_FOUR };

static const struct {
    const char *name, *change;
    nsa_status (*run)(const problem *pb);
    int slc, win; /* one of the above */
    bool fused;   /* no outputs between launches */
} steps[STEPS] = {
    {"0_thread_row", "a thread a row", step_0_thread_row, KEY_PER_ROW, KEY_PER_WARP, false},
    {"1_shared_block", "a CUDA block a row, K/V block shared", step_1_shared_block, BLOCK_PER_ROW,
     BLOCK_PER_ROW, false},
    {"2_group", "a K/V block to all 16 heads", step_2_group, BLOCK_PER_QUERY, BLOCK_PER_QUERY,
     false},
    {"3_neighbours", "a window's block to 4 queries", step_3_neighbours, BLOCK_PER_QUERY,
     BLOCK_PER_FOUR, false},
    {"4_fused", "both branches and gate in one launch", step_4_fused, BLOCK_PER_QUERY,
     BLOCK_PER_FOUR, true},
};

/* The result of a step. */
typedef struct result {
    double rms_diff; /* from step 0, relative to the rms; step 0's is from float64 */
    double ms;       /* median; 0 if not timed */
    char error[512]; /* empty unless a call failed */
} result;

static bool passed(const result *r) {
    return !*r->error && r->rms_diff <= TOLERANCE; /* false for NaN */
}

/* ---------------------------------------------------------------- bytes */

/* Bytes of keys and values that one branch sends to multiprocessors. Lanes of a warp that read the
 * same address at the same time make one request. */
static double kv_bytes(const counts *n, int branch, int reuse) {
    const double key = 2 * D * sizeof(float); /* and its value */
    const double blocks = reuse == BLOCK_PER_FOUR ? n->shared : n->blocks[branch];
    if (reuse == KEY_PER_ROW || reuse == KEY_PER_WARP)
        return key * G * (reuse == KEY_PER_ROW ? n->keys[branch] : n->warp_keys);
    return key * BLOCK * (reuse == BLOCK_PER_ROW ? G : 1) * blocks;
}

/* All bytes between second-level cache and multiprocessors. Let X be the bytes of q, the same as of
 * an output. Two launches read q and write o each, a third reads both and writes out: 7 X. Fused: q
 * read; out written, read and written: 4 X. Lists and gates are below 1%. */
static double bytes_to_cores(const problem *pb, const counts *n, int step) {
    const double X = (double)pb->T * G * D * sizeof(float);
    return kv_bytes(n, SLC, steps[step].slc) + kv_bytes(n, WIN, steps[step].win) +
           (steps[step].fused ? 4 : 7) * X;
}

/* The same for device memory, if the second-level cache keeps keys and values during a launch, and
 * nothing from one launch to the next: what a fused launch reads back it has just written. */
static double bytes_of_memory(const problem *pb, int step) {
    const double X = (double)pb->T * G * D * sizeof(float);
    return 4.0 * (double)pb->T * D * sizeof(float) + (steps[step].fused ? 2 : 7) * X;
}

/* Useful work: 4 D flops (a multiply and an add each for q.k and p v) a head and visible key. */
static double useful_flops(const counts *n) {
    return 4.0 * D * G * (n->keys[SLC] + n->keys[WIN]);
}

/* -------------------------------------------------------- check and measure */

/* Fill all that a step may write with NaN. On a GPU this also leaves little else in the caches. */
static nsa_status poison(const problem *pb) {
    const size_t bytes = (size_t)pb->T * G * D * sizeof(float);
    NSA_CUDA(cudaMemsetAsync(pb->o[SLC], 0xff, bytes, 0));
    NSA_CUDA(cudaMemsetAsync(pb->o[WIN], 0xff, bytes, 0));
    NSA_CUDA(cudaMemsetAsync(pb->out, 0xff, bytes, 0));
    return NSA_OK;
}

/* Run a step once, and copy its outputs to the host. */
static nsa_status run(const problem *pb, int step, float *out) {
    TRY(poison(pb));
    TRY(steps[step].run(pb));
    NSA_CUDA(cudaDeviceSynchronize());
    NSA_CUDA(
        cudaMemcpy(out, pb->out, (size_t)pb->T * G * D * sizeof(float), cudaMemcpyDeviceToHost));
    return NSA_OK;
}

/* Run a step once between two events. */
static nsa_status run_timed(const problem *pb, int step, const cudaEvent_t *event, double *ms) {
    float passed_ms = 0;
    TRY(poison(pb));
    NSA_CUDA(cudaEventRecord(event[0], 0));
    TRY(steps[step].run(pb));
    NSA_CUDA(cudaEventRecord(event[1], 0));
    NSA_CUDA(cudaEventSynchronize(event[1]));
    NSA_CUDA(cudaEventElapsedTime(&passed_ms, event[0], event[1]));
    *ms = (double)passed_ms;
    return NSA_OK;
}

/* rms(x - reference) / rms(reference), in float64. NaN where either holds one. */
static double difference(const float *x, const float *reference, int64_t n) {
    double rms_diff = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i] - (double)reference[i];
        rms_diff += d * d;
        all += (double)reference[i] * (double)reference[i];
    }
    return sqrt(rms_diff / all);
}

static void record_error(result *r, nsa_status status) {
    if (status)
        snprintf(r->error, sizeof r->error, "%s", nsa_last_error());
}

/* Check: run each step once. It is also the warm-up. */
static void check(const problem *pb, const host *h, result *results) {
    const int64_t n = (int64_t)pb->T * G * D;
    float *out = (float *)allocate(n, sizeof *out), *first = (float *)allocate(n, sizeof *first);
    for (int step = 0; step < STEPS; step++) {
        result *r = &results[step];
        record_error(r, run(pb, step, step ? out : first));
        if (!*r->error)
            r->rms_diff = step ? difference(out, first, n) : rms_diff_float64(pb, h, first);
    }
    free(out);
    free(first);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Medians of the steps that passed. Each round runs every step once, so that what else the machine
 * does slows all of them alike. */
static nsa_status measure(const problem *pb, result *results) {
    double runs[STEPS][RUNS] = {};
    cudaEvent_t event[2];
    NSA_CUDA(cudaEventCreate(&event[0]));
    NSA_CUDA(cudaEventCreate(&event[1]));
    for (int round = 0; round < RUNS; round++) {
        for (int step = 0; step < STEPS; step++) {
            if (passed(&results[step]))
                record_error(&results[step], run_timed(pb, step, event, &runs[step][round]));
        }
    }
    for (int step = 0; step < STEPS; step++) {
        qsort(runs[step], RUNS, sizeof runs[step][0], by_size);
        results[step].ms = runs[step][RUNS / 2];
    }
    return NSA_OK;
}

/* --------------------------------------------------------------------- table */

typedef char cell[48];

static void put(cell to, int digits, double x) {
    snprintf(to, sizeof(cell), x > 0 ? "%.*f" : "-", digits, x);
}

/* Aligned for a terminal, or a row of Markdown. Words are aligned left, numbers right. */
static void print_row(const cell *cells, bool markdown) {
    static const int widths[CELLS] = {-14, -36, 8, 8, 8, 8, 8, 7, 7};
    for (int i = 0; i < CELLS; i++)
        printf(markdown ? "| %*s " : "%*s ", markdown ? 0 : widths[i], cells[i]);
    printf(markdown ? "|\n" : "\n");
}

static void print_result(const problem *pb, const counts *n, const result *results, int step,
                         bool markdown) {
    const result *r = &results[step];
    const double ms = r->ms;
    cell cells[CELLS] = {};
    snprintf(cells[0], sizeof(cell), "%s", steps[step].name);
    snprintf(cells[1], sizeof(cell), "%s", steps[step].change);
    snprintf(cells[2], sizeof(cell), "%.1e", r->rms_diff);
    put(cells[3], 3, ms);
    put(cells[4], 0, ms > 0 ? 1e-6 * useful_flops(n) / ms : 0);
    put(cells[5], 3, 1e-9 * bytes_of_memory(pb, step));
    put(cells[6], 3, 1e-9 * bytes_to_cores(pb, n, step));
    put(cells[7], 2, step && ms > 0 && passed(r - 1) ? results[step - 1].ms / ms : 0);
    put(cells[8], 2, step && ms > 0 && passed(results) ? results[0].ms / ms : 0);
    print_row(cells, markdown);
}

/* The table; returns how many steps were refused. */
static int print_table(const problem *pb, const counts *n, const result *results, bool markdown) {
    const cell head[CELLS] = {"step",   "what changed", "rms diff", "ms",    "GFLOP/s",
                              "memory", "cores",        "before",   "step 0"};
    int refused = 0;
    print_row(head, markdown);
    if (markdown)
        printf("|---|---|---|---|---|---|---|---|---|\n");
    for (int step = 0; step < STEPS; step++) {
        if (passed(&results[step]))
            print_result(pb, n, results, step, markdown);
    }
    printf(
        "\nrms diff: rms from step 0, step 0's from float64. GFLOP/s: 4 D a head and visible key.\n"
        "memory, cores: GB counted to and from device memory, and multiprocessors.\n"
        "before, step 0: times faster than that step.\n");
    if (!TIMED)
        printf("Not timed: the simulator's times say nothing about a GPU.\n");
    for (int step = 0; step < STEPS; step++) {
        const result *r = &results[step];
        refused += !passed(r);
        if (*r->error)
            printf("%s REFUSED: %s\n", steps[step].name, r->error);
        else if (!passed(r))
            printf("%s REFUSED: %.1e rms difference from %s, %.0e at most\n", steps[step].name,
                   r->rms_diff, step ? "step 0" : "float64", TOLERANCE);
    }
    return refused;
}

int main(int argc, char **argv) {
    static result results[STEPS];
    problem pb;
    host h;
    char *end = NULL;
    long T = DEFAULT_T;
    bool markdown = false, wrong = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--markdown") == 0)
            markdown = true;
        else
            T = strtol(argv[i], &end, 10);
        wrong |= end && (*end || T < 1 || T > MAX_TOKENS);
    }
    if (wrong) {
        fprintf(stderr, "usage: %s [T] [--markdown]   tokens, 1 to %d; %d if not given\n", argv[0],
                MAX_TOKENS, DEFAULT_T);
        return 2;
    }
    if (make_problem((int)T, &h, &pb)) {
        fprintf(stderr, "steps: %s\n", nsa_last_error());
        return 2;
    }
    const counts n = count(&pb, &h);
    printf("%s: T=%ld G=%d D=%d n=%d w=%d", nsa_device_name(), T, G, D, pb.n, pb.w);
    if (TIMED)
        printf(", median of %d runs", RUNS);
    printf("\n\n");
    check(&pb, &h, results);
    if (TIMED && measure(&pb, results)) {
        fprintf(stderr, "steps: %s\n", nsa_last_error());
        return 2;
    }
    return print_table(&pb, &n, results, markdown) ? 1 : 0;
}
