/** @file threads.c
 *  @brief Two contexts of a stage, used in two threads at once, give the results that each gives
 * alone, and each thread reads its own last error. For `make test-tsan`.
 *
 *     threads            every stage
 *     threads 01         one */
#include "harness/run.h"
#include "harness/tensor.h"
#include "nsa_find.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 2, ROUNDS = 3 };

/* The work of one thread, and the expected results. */
typedef struct work {
    const nsa_stage *stage;
    test_case c;
    nsa_tensors in;
    nsa_tensors alone, decoded; /* results of the same calls without a second thread */
    const char *broken_key;     /* the config key that this thread sets wrongly */
    char why[256];              /* what was wrong; "" if nothing was */
    pthread_barrier_t *start;   /* where all threads start a round */
} work;

static nsa_status same_results(const nsa_tensors *a, const nsa_tensors *b) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (a->at[id].dtype && !tensor_same(&a->at[id], &b->at[id]))
            return nsa_fail(NSA_ERR_STATE, "%s differs from what one thread computes",
                            nsa_name((nsa_id)id));
    }
    return NSA_OK;
}

/* Set a key to an illegal value: the error must name this thread's key, not the other's. */
static nsa_status own_error(const work *w) {
    nsa_config cfg = w->c.cfg;
    nsa_context *ctx = NULL;
    for (int i = 0; i < 200; i++) {
        nsa_status status = nsa_config_set(&cfg, w->broken_key, -1, NULL);
        if (!status || !strstr(nsa_last_error(), w->broken_key))
            return nsa_fail(NSA_ERR_STATE, "an error of %s said: %.100s", w->broken_key,
                            nsa_last_error());
    }
    if (nsa_open(w->stage, &cfg, &(nsa_setup){0}, &ctx) == NSA_OK)
        return nsa_fail(NSA_ERR_STATE, "a broken config was opened");
    return NSA_OK;
}

static nsa_status one_round(const work *w) {
    nsa_tensors results = {0}, decoded = {0};
    nsa_status status = run_stage(w->stage, &w->c.cfg, &w->in, RUN_BACKWARD, &results);
    status = status ? status : same_results(&w->alone, &results);
    status = status ? status : run_decode(w->stage, &w->c.cfg, &w->in, 5, 0, &decoded);
    status = status ? status : same_results(&w->decoded, &decoded);
    status = status ? status : own_error(w);
    tensors_free(&results);
    tensors_free(&decoded);
    return status;
}

/* All threads start each round together, so that their calls overlap and a race can show. */
static void *run_rounds(void *argument) {
    work *w = argument;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_barrier_wait(w->start);
        if (!w->why[0] && one_round(w))
            snprintf(w->why, sizeof w->why, "%s", nsa_last_error());
    }
    return NULL;
}

/* Prepare one thread's inputs and expected results. */
static nsa_status prepare(work *w, const nsa_stage *stage, int i) {
    static const char *const texts[THREADS] = {"T=40,phi=gated", "T=33,phi=mlp,hidden=6,Hq=6"};
    static const char *const keys[THREADS] = {"window", "slc_block"};
    memset(w, 0, sizeof *w);
    w->stage = stage;
    w->broken_key = keys[i];
    nsa_status status = case_parse(texts[i], &w->c);
    status = status ? status : case_inputs(&w->c, stage->arith, &w->in);
    status = status ? status : run_stage(stage, &w->c.cfg, &w->in, RUN_BACKWARD, &w->alone);
    return status ? status : run_decode(stage, &w->c.cfg, &w->in, 5, 0, &w->decoded);
}

/* @return 1 if nothing was wrong. */
static int judge(const nsa_found *found) {
    work works[THREADS];
    pthread_barrier_t start;
    pthread_t threads[THREADS];
    int started = 0, good = 1;
    for (int i = 0; i < THREADS; i++) {
        if (prepare(&works[i], found->stage, i)) {
            snprintf(works[i].why, sizeof works[i].why, "%s", nsa_last_error());
            good = 0;
        }
    }
    pthread_barrier_init(&start, NULL, THREADS);
    for (; good && started < THREADS; started++) {
        works[started].start = &start;
        if (pthread_create(&threads[started], NULL, run_rounds, &works[started])) {
            fprintf(stderr, "threads: cannot start a thread\n");
            exit(2); /* the others would wait at the barrier forever */
        }
    }
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start);
    for (int i = 0; i < THREADS; i++) {
        if (works[i].why[0])
            printf("FAIL %s in thread %d: %s\n", found->name, i, works[i].why);
        good = good && i < started && !works[i].why[0];
        tensors_free(&works[i].in);
        tensors_free(&works[i].alone);
        tensors_free(&works[i].decoded);
    }
    return good;
}

int main(int argc, char **argv) {
    nsa_found *list;
    size_t count, passed = 0, failed = 0, skipped = 0;
    if (nsa_find_stages(NULL, &list, &count)) {
        fprintf(stderr, "threads: %s\n", nsa_last_error());
        return 2;
    }
    for (size_t i = 0; i < count; i++) {
        if (argc > 1 && strncmp(list[i].name, argv[1], strlen(argv[1])) != 0)
            continue;
        if (!list[i].stage || list[i].stage->available()) {
            printf("SKIP %s: %s\n", list[i].name,
                   list[i].stage ? nsa_last_error() : list[i].problem);
            skipped++;
        } else if (judge(&list[i])) {
            passed++;
        } else {
            failed++;
        }
    }
    nsa_free_stages(list, count);
    printf("%zu passed, %zu failed, %zu skipped\n", passed, failed, skipped);
    return failed || !(passed + skipped);
}
