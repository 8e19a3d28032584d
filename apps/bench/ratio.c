/** @file ratio.c
 *  @brief Ratios of times, round by round. */
#include "bench/ratio.h"

bench_stats bench_ratio(const bench_row *r, const bench_row *than) {
    double ratio[BENCH_MAX_RUNS];
    int shared = 0;
    for (int i = 0; i < r->rounds && i < than->rounds; i++) {
        if (r->round[i] > 0 && than->round[i] > 0)
            ratio[shared++] = than->round[i] / r->round[i];
    }
    if (shared >= BENCH_MIN_SHARED)
        return bench_quartiles(ratio, shared);
    return (bench_stats){than->q1 / r->q3, than->median / r->median, than->q3 / r->q1};
}
