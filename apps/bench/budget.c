/** @file budget.c
 *  @brief Predict a run time from shorter runs: time grows as T^e. */
#include "bench/budget.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int budget_runs(const bench_budget *b, double seconds, double limit) {
    if (b->runs && b->runs * seconds > limit)
        return limit < 3 * seconds ? 3 : (int)(limit / seconds);
    if (b->runs)
        return b->runs;
    if (seconds <= 0.05)
        return BENCH_MANY_RUNS;
    if (seconds <= BENCH_SLOW_RUN)
        return BENCH_MIN_RUNS;
    int runs = (int)(20 / seconds);
    return runs < 3 ? 3 : runs < BENCH_MIN_RUNS ? runs : BENCH_MIN_RUNS;
}

/* e from the last two lengths, clamped to 1..2.2; with one length, e = 2. */
static double predict(const bench_history *h, const double seconds[2], int64_t T) {
    double e = 2;
    if (h->T[0])
        e = log(seconds[1] / seconds[0]) / log((double)h->T[1] / (double)h->T[0]);
    e = e < 1 ? 1 : e > 2.2 ? 2.2 : e;
    return seconds[1] * pow((double)T / (double)h->T[1], e);
}

double budget_cost(const bench_budget *b, const char *name, int64_t T, double limit) {
    for (int i = 0; i < b->count; i++) {
        const bench_history *h = &b->history[i];
        if (strcmp(h->name, name) != 0)
            continue;
        const double first = predict(h, h->first, T), cost = predict(h, h->cost, T);
        return cost + budget_runs(b, first, limit - cost) * first;
    }
    return 0;
}

void budget_note(bench_budget *b, const char *name, int64_t T, double cost, double first) {
    int i = 0;
    while (i < b->count && strcmp(b->history[i].name, name) != 0)
        i++;
    if (i == (int)(sizeof b->history / sizeof b->history[0]))
        return;
    bench_history *h = &b->history[i];
    if (i == b->count) {
        b->count++;
        *h = (bench_history){0};
        snprintf(h->name, sizeof h->name, "%s", name);
    }
    h->T[0] = h->T[1];
    h->cost[0] = h->cost[1];
    h->first[0] = h->first[1];
    h->T[1] = T;
    h->cost[1] = cost;
    h->first[1] = first;
}
