/** @file
 *  @brief Runs the chains: checks each step, times those that agree, and prints a table a chain.
 *
 *      build/steps/02_blocked [T] [CHAIN]...     T tokens, the chain's own number if not given
 */
#include "steps.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MIN_ROUNDS = 3, MAX_ROUNDS = 21, MAX_STEPS = 10, COLUMNS = 80, LAST_T = 1 << 20 };

static const double SECONDS = 10;     /* a chain: no round begins later, after the first few */
static const double TOLERANCE = 1e-5; /* float32 sums of a thousand terms in another order: ~1e-6 */

/* Compiler and flags: steps.mk passes what it compiled every step with. */
#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

/* Of each step: its chain, its file, and how many lines of it are not the step before's. MOVES is
 * the file that steps.mk makes of them. */
static const struct {
    const char *chain, *step;
    int changed;
} moves[] = {
#include MOVES
};

/* CHAINS is CHAIN(attend) CHAIN(...) ...: the folders found. */
#define CHAIN(name) &chain_##name,
static const chain *const chains[] = {CHAINS};
enum { N_MOVES = sizeof moves / sizeof *moves, N_CHAINS = sizeof chains / sizeof *chains };

/* What became of a chain's steps. */
typedef struct outcome {
    double error;                 /* of step 0, from float64 */
    double difference[MAX_STEPS]; /* from step 0 */
    double ms[MAX_STEPS];         /* median; 0 of a step that is refused */
    int rounds;
    double share; /* of one core's time that was ours while measuring */
} outcome;

static int agrees(const outcome *found, int step) {
    return found->difference[step] <= TOLERANCE && found->error <= TOLERANCE; /* false for NaN */
}

static double clock_ms(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

/* Each step once, into NaN: this is the check, and the warm-up. */
static void check(const chain *ch, outcome *found) {
    int64_t n;
    real *out = ch->result(&n);
    double *first = allocate(n, sizeof *first);
    for (int step = 0; step < ch->n_steps; step++) {
        for (int64_t i = 0; i < n; i++)
            out[i] = NAN;
        ch->run(step);
        if (step == 0)
            found->error = ch->error();
        for (int64_t i = 0; i < n && step == 0; i++)
            first[i] = (double)out[i];
        found->difference[step] = relative_rms(out, first, n);
    }
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Medians of the steps that passed. Round after round, each step once a round: what else the
 * machine does then slows all of them alike. */
static void measure(const chain *ch, outcome *found) {
    static double runs[MAX_STEPS][MAX_ROUNDS];
    const double from = clock_ms(CLOCK_MONOTONIC), cpu = clock_ms(CLOCK_PROCESS_CPUTIME_ID);
    int round = 0;
    for (; round < MIN_ROUNDS ||
           (round < MAX_ROUNDS && clock_ms(CLOCK_MONOTONIC) - from < 1e3 * SECONDS);
         round++) {
        for (int step = 0; step < ch->n_steps; step++) {
            const double begun = clock_ms(CLOCK_MONOTONIC);
            if (agrees(found, step))
                ch->run(step);
            runs[step][round] = clock_ms(CLOCK_MONOTONIC) - begun;
        }
    }
    found->rounds = round;
    found->share = (clock_ms(CLOCK_PROCESS_CPUTIME_ID) - cpu) / (clock_ms(CLOCK_MONOTONIC) - from);
    for (int step = 0; step < ch->n_steps; step++) {
        qsort(runs[step], (size_t)round, sizeof runs[step][0], by_size);
        found->ms[step] = agrees(found, step) ? runs[step][round / 2] : 0;
    }
}

static void print_row(const chain *ch, const outcome *found, int step, int move) {
    char faster[16] = "-", changed[16] = "-";
    if (step > 0) {
        snprintf(changed, sizeof changed, "%d", moves[move].changed);
        if (found->ms[step - 1] > 0)
            snprintf(faster, sizeof faster, "%.2f", found->ms[step - 1] / found->ms[step]);
    }
    printf("%-13s  %-41s %7s %10.3f %7s\n", moves[move].step, ch->what[step], changed,
           found->ms[step], faster);
}

/* The table; returns how many steps were refused. */
static int print_table(const chain *ch, const outcome *found, int move) {
    int refused = 0;
    printf("%-13s  %-41s %7s %10s %7s\n", "step", "what changed", "lines", "ms", "faster");
    for (int step = 0; step < ch->n_steps; step++, move++) {
        if (agrees(found, step)) {
            print_row(ch, found, step, move);
            continue;
        }
        printf("%-13s  REFUSED: %.1e from step 0, which is %.1e from float64; %.0e at most\n",
               moves[move].step, found->difference[step], found->error, TOLERANCE);
        refused++;
    }
    return refused;
}

/* One chain; returns how many steps were refused. */
static int run_chain(const chain *ch, int64_t T) {
    outcome found = {0};
    int first = 0, files = 0, refused;
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
    check(ch, &found);
    measure(ch, &found);
    printf("\n%s, T=%lld, median of %d rounds\n\n", ch->name, (long long)T, found.rounds);
    refused = print_table(ch, &found, first);
    if (found.share < 0.9)
        printf("Busy machine: %.2f of a core was ours, so ms are too long.\n", found.share);
    ch->free();
    return refused;
}

/* Words, as many to a line as fit. */
static void print_wrapped(const char *text) {
    for (size_t column = 0; *text;) {
        const size_t word = strcspn(text, " ");
        const char *gap = !column ? "" : column + 1 + word > COLUMNS ? "\n  " : " ";
        column = *gap == '\n' ? 2 + word : column + strlen(gap) + word;
        printf("%s%.*s", gap, (int)word, text);
        text += word + strspn(text + word, " ");
    }
    printf("\n");
}

/* T of argument i, 0 if it is the name of a chain, -1 if it is neither. */
static long parse(const char *argument) {
    char *end;
    const long T = strtol(argument, &end, 10);
    for (int i = 0; i < N_CHAINS; i++) {
        if (strcmp(argument, chains[i]->name) == 0)
            return 0;
    }
    return *end || T < 1 || T > LAST_T ? -1 : T;
}

int main(int argc, char **argv) {
    int64_t T = 0;
    int refused = 0, named = 0;
    for (int i = 1; i < argc; i++) {
        const long number = parse(argv[i]);
        if (number < 0) {
            fprintf(stderr, "usage: %s [T] [CHAIN]...   T tokens, 1 to %d; CHAIN one of", argv[0],
                    LAST_T);
            for (int j = 0; j < N_CHAINS; j++)
                fprintf(stderr, " %s", chains[j]->name);
            fprintf(stderr, "\n");
            return 2;
        }
        named += number == 0;
        T = number ? number : T;
    }
    print_wrapped(COMPILER ": " STEPS_FLAGS);
    printf("%d threads at most; inputs from the seed \"%s\"\n", omp_get_max_threads(), SEED);
    printf("lines: changed from the step before. faster: times the step before.\n");
    for (int j = 0; j < N_CHAINS; j++) {
        int wanted = !named;
        for (int i = 1; i < argc; i++)
            wanted |= strcmp(argv[i], chains[j]->name) == 0;
        refused += wanted ? run_chain(chains[j], T ? T : chains[j]->default_T) : 0;
    }
    return refused ? 1 : 0;
}
