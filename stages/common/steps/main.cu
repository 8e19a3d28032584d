/** @file
 *  @brief Runs the chains: checks each step against step 0, and step 0 against a reference; times
 *  those that agree if there is a GPU, and prints a table a chain.
 *
 *      build/steps/NN_name [T] [CHAIN]...     T tokens, the chain's own number if not given
 */
#include "steps.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 11, MAX_STEPS = 12, MAX_TOKENS = 1 << 20 };

#ifdef NSA_SIMT
static const bool TIMED = false; /* its times say nothing about a GPU */
static const int SIMULATOR_T = 201;
#else
static const bool TIMED = true;
static const int SIMULATOR_T = 0; /* each chain has its own */
#endif

/* cuda.mk lists the folders found, and each step's file with how many of its lines are not the
 * step before's. */
#define CHAIN(name) extern const chain chain_##name;
#define MOVE(chain, step, changed)
#include MOVES
#undef CHAIN
#undef MOVE

#define CHAIN(name) &chain_##name,
#define MOVE(chain, step, changed)
static const chain *const chains[] = {
#include MOVES
};
#undef CHAIN
#undef MOVE

#define CHAIN(name)
#define MOVE(chain, step, changed) {chain, step, changed},
static const struct {
    const char *chain, *step;
    int changed;
} moves[] = {
#include MOVES
};
enum { N_CHAINS = sizeof chains / sizeof *chains, N_MOVES = sizeof moves / sizeof *moves };

/* The outcome of one step. */
typedef struct outcome {
    double difference; /* from step 0; step 0's is from the reference, */
    double tolerance;  /* and what it may be */
    double ms;         /* median; 0 if not timed */
    char error[512];   /* empty unless a call failed */
} outcome;

static bool passed(const outcome *x) {
    return !*x->error && x->difference <= x->tolerance; /* false for NaN */
}

/* -------------------------------------------------------- check and measure */

/* Run a step once on poisoned memory, and copy its result to the host. */
static nsa_status run_checked(const chain *ch, int step, void *out) {
    int64_t bytes;
    const void *result = ch->result(&bytes);
    TRY(poison());
    TRY(ch->run(step));
    NSA_CUDA(cudaDeviceSynchronize());
    NSA_CUDA(cudaMemcpy(out, result, (size_t)bytes, cudaMemcpyDeviceToHost));
    return NSA_OK;
}

/* Run a step once between two events. */
static nsa_status run_timed(const chain *ch, int step, const cudaEvent_t *event, double *ms) {
    float elapsed = 0;
    TRY(poison());
    NSA_CUDA(cudaEventRecord(event[0], 0));
    TRY(ch->run(step));
    NSA_CUDA(cudaEventRecord(event[1], 0));
    NSA_CUDA(cudaEventSynchronize(event[1]));
    NSA_CUDA(cudaEventElapsedTime(&elapsed, event[0], event[1]));
    *ms = (double)elapsed;
    return NSA_OK;
}

static void record_error(outcome *x, nsa_status status) {
    if (status)
        snprintf(x->error, sizeof x->error, "%s", nsa_last_error());
}

/* Each step once: this is the check, and the warm-up. */
static void check(const chain *ch, outcome *found) {
    int64_t bytes;
    ch->result(&bytes);
    void *out = allocate(bytes, 1), *first = allocate(bytes, 1);
    for (int step = 0; step < ch->n_steps; step++) {
        found[step].tolerance = ch->tolerance[step > 0];
        record_error(&found[step], run_checked(ch, step, step ? out : first));
        if (*found[step].error)
            continue;
        if (step == 0)
            found[step].difference = ch->error(first);
        /* of step 0 itself: NaN if it holds one anywhere */
        found[step].difference =
            larger(found[step].difference, ch->difference(step ? out : first, first));
    }
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Medians of the steps that passed. Each round runs every step once, so that what else the machine
 * does slows all of them alike. */
static nsa_status measure(const chain *ch, outcome *found) {
    static double runs[MAX_STEPS][RUNS];
    cudaEvent_t event[2];
    NSA_CUDA(cudaEventCreate(&event[0]));
    NSA_CUDA(cudaEventCreate(&event[1]));
    for (int round = 0; round < RUNS; round++) {
        for (int step = 0; step < ch->n_steps; step++) {
            runs[step][round] = 0;
            if (passed(&found[step]))
                record_error(&found[step], run_timed(ch, step, event, &runs[step][round]));
        }
    }
    for (int step = 0; step < ch->n_steps; step++) {
        qsort(runs[step], RUNS, sizeof runs[step][0], by_size);
        found[step].ms = runs[step][RUNS / 2];
    }
    return NSA_OK;
}

/* --------------------------------------------------------------------- table */

static void print_row(const chain *ch, const outcome *found, int step, int move) {
    char changed[16] = "-", faster[16] = "-";
    if (step > 0) {
        snprintf(changed, sizeof changed, "%d", moves[move].changed);
        if (found[step - 1].ms > 0)
            snprintf(faster, sizeof faster, "%.2f", found[step - 1].ms / found[step].ms);
    }
    printf("%-15s  %-46s %6s", moves[move].step, ch->what[step], changed);
    if (TIMED)
        printf(" %9.3f %7s", found[step].ms, faster);
    printf("\n");
}

/* The table; returns how many steps were refused. */
static int print_table(const chain *ch, const outcome *found, int move) {
    int refused = 0;
    printf("%-15s  %-46s %6s%s\n", "step", "what changed", "lines",
           TIMED ? "        ms  faster" : "");
    for (int step = 0; step < ch->n_steps; step++, move++) {
        if (passed(&found[step])) {
            print_row(ch, found, step, move);
            continue;
        }
        refused++;
        if (*found[step].error)
            printf("%-15s  REFUSED: %s\n", moves[move].step, found[step].error);
        else
            printf("%-15s  REFUSED: %.1e from %s, %.0e at most\n", moves[move].step,
                   found[step].difference, step ? "step 0" : "the reference",
                   found[step].tolerance);
    }
    return refused;
}

/* One chain; returns how many steps were refused. */
static int run_chain(const chain *ch, int T) {
    static outcome found[MAX_STEPS];
    int first = 0, files = 0, refused;
    memset(found, 0, sizeof found);
    while (first < N_MOVES && strcmp(moves[first].chain, ch->name) != 0)
        first++;
    while (first + files < N_MOVES && strcmp(moves[first + files].chain, ch->name) == 0)
        files++;
    if (files != ch->n_steps || files > MAX_STEPS) {
        printf("%s: %d files of steps, %d are run, %d at most\n", ch->name, files, ch->n_steps,
               MAX_STEPS);
        return 1;
    }
    ch->make(T);
    check(ch, found);
    if (TIMED && measure(ch, found)) {
        fprintf(stderr, "steps: %s\n", nsa_last_error());
        exit(2);
    }
    printf("\n%s, T=%d", ch->name, T);
    if (TIMED)
        printf(", median of %d runs", (int)RUNS);
    printf("\n\n");
    refused = print_table(ch, found, first);
    release();
    return refused;
}

/* T of an argument, 0 if it is the name of a chain, -1 if it is neither. */
static long parse(const char *argument) {
    char *end;
    const long T = strtol(argument, &end, 10);
    for (int i = 0; i < N_CHAINS; i++) {
        if (strcmp(argument, chains[i]->name) == 0)
            return 0;
    }
    return *end || T < 1 || T > MAX_TOKENS ? -1 : T;
}

int main(int argc, char **argv) {
    int T = 0, refused = 0, named = 0;
    for (int i = 1; i < argc; i++) {
        const long number = parse(argv[i]);
        if (number < 0) {
            fprintf(stderr, "usage: %s [T] [CHAIN]...   T tokens, 1 to %d; CHAIN one of", argv[0],
                    (int)MAX_TOKENS);
            for (int j = 0; j < N_CHAINS; j++)
                fprintf(stderr, " %s", chains[j]->name);
            fprintf(stderr, "\n");
            return 2;
        }
        named += number == 0;
        T = number ? (int)number : T;
    }
    printf("%s; inputs from the seed \"%s\"\n", nsa_device_name(), SEED);
    printf("lines: changed from the step before.%s\n",
           TIMED ? " faster: times the step before." : " The simulator times nothing.");
    for (int j = 0; j < N_CHAINS; j++) {
        bool wanted = !named;
        for (int i = 1; i < argc; i++)
            wanted |= strcmp(argv[i], chains[j]->name) == 0;
        if (wanted)
            refused += run_chain(chains[j], T ? T : TIMED ? chains[j]->gpu_T : SIMULATOR_T);
    }
    return refused ? 1 : 0;
}
