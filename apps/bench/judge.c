/** @file judge.c
 *  @brief Choosing the oracle, and checking it against stage 00. */
#include "bench/judge.h"
#include "bench/timing.h"
#include "bench/verify.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PROOF_TOKENS = 1024 /* tokens; stage 00's rows there take seconds at any heads */ };

nsa_status judge_open(bench_judge *j, const bench_options *o) {
    static const char *const names[] = {"02", "01"};
    memset(j, 0, sizeof *j);
    j->o = o;
    nsa_status status = nsa_find_stage(o->stage_dir, "00", &j->oracle);
    if (status)
        return status;
    if (o->judge) {
        status = nsa_find_stage(o->stage_dir, o->judge, &j->second);
        const nsa_stage *s = j->second.stage;
        if (!status && (s->device || s->arith == NSA_BFLOAT16))
            return nsa_fail(NSA_ERR_INPUT, "--judge %s: not a float stage of the CPU", o->judge);
        return status;
    }
    for (int i = 0; i < 2 && !j->second.stage; i++) {
        if (nsa_find_stage(o->stage_dir, names[i], &j->second))
            j->second = (nsa_found){0};
    }
    return NSA_OK;
}

void judge_begin(bench_judge *j) {
    j->oracle_seconds = 0;
    j->tried = j->proven = 0;
}

void judge_note(bench_judge *j, int64_t T, double seconds) {
    j->oracle_seconds = seconds / (double)T;
}

/* Check the second stage's rows against stage 00's. */
static nsa_status prove(bench_judge *j, bench_pass pass) {
    const int64_t T =
        j->o->T[j->o->sizes - 1] < PROOF_TOKENS ? j->o->T[j->o->sizes - 1] : PROOF_TOKENS;
    const nsa_stage *second = j->second.stage;
    nsa_tensors mine = {0};
    workload w;
    nsa_status status = workload_open(j->o, pass, T, NSA_FLOAT32, &w);
    const double start = bench_now();
    status = status ? status : verify_truth(&w, j->oracle.stage, j->oracle.name, 0);
    judge_note(j, T, bench_now() - start);
    status = status ? status : verify_run(&w, second, 0, NULL, &mine);
    status = status ? status : verify(&w, j->oracle.stage, second->arith, 0, &mine);
    tensors_free(&mine);
    workload_close(&w);
    return status;
}

const nsa_found *judge_of(bench_judge *j, bench_pass pass, int64_t T) {
    if (!j->second.stage || j->second.stage == j->oracle.stage)
        return &j->oracle;
    if (!j->o->judge && (T <= PROOF_TOKENS || (j->tried && !j->proven)))
        return &j->oracle;
    /* a step takes milliseconds, so the check of a decode is most of what it costs */
    const double share = pass == BENCH_DECODE ? 8 : 2;
    if (!j->o->judge && j->oracle_seconds > 0 &&
        j->oracle_seconds * (double)T * share <= j->o->budget)
        return &j->oracle;
    if (!j->tried) {
        nsa_status status = prove(j, pass);
        j->tried = 1;
        j->proven = !status;
        fprintf(stderr, "nsa bench: %s judges %s: %s\n", j->second.name, bench_pass_name(pass),
                status ? nsa_last_error() : "its rows agree with stage 00's");
        return judge_of(j, pass, T); /* now the time of stage 00 is known */
    }
    return j->proven ? &j->second : &j->oracle;
}

void judge_close(bench_judge *j) {
    nsa_free_stage(&j->oracle);
    if (j->second.stage)
        nsa_free_stage(&j->second);
}
