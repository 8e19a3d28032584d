/** @file verify.c
 *  @brief Sampled rows against the oracle's; and which stage is the oracle. */
#include "bench/workload.h"
#include "harness/compare.h"
#include "harness/properties.h"
#include "harness/run.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Compute the sampled rows by a stage; block_idx [R,Hkv,n] to force, or NULL to select. */
static nsa_status verify_run(const workload *w, const nsa_stage *stage, int causal,
                             const nsa_tensor *block_idx, nsa_tensors *results) {
    const int flags =
        (w->pass == BENCH_BACKWARD ? RUN_BACKWARD : RUN_FORWARD) + RUN_THREADS * w->threads;
    nsa_tensors in;
    nsa_tensor gate;
    nsa_config cfg;
    if (w->pass == BENCH_DECODE)
        return slots_judge(w, stage, causal, block_idx, results);
    nsa_status status = workload_judged(w, causal, &cfg, &gate, &in);
    if (!status && block_idx)
        status = force_blocks(&cfg, &in, block_idx);
    status = status ? status : run_stage(stage, &cfg, &in, flags, results);
    tensor_free(&in.at[NSA_BLOCK_IDX]);
    tensor_free(&gate);
    return status;
}

nsa_status verify_truth(workload *w, const nsa_stage *oracle, const char *name, int causal) {
    if (w->truth[causal].at[NSA_OUT].dtype)
        return NSA_OK;
    snprintf(w->oracle, sizeof w->oracle, "%s", name);
    return verify_run(w, oracle, causal, NULL, &w->truth[causal]);
}

/* dphi_k_b2 is zero by identity. An oracle in float32 has only rounding errors there, so compare
 * with zero. */
static nsa_status compare_with_zero(const tolerance *tol, nsa_id id, const nsa_tensor *mine,
                                    const gradient_units *units) {
    nsa_tensor zero = *mine;
    nsa_status status = tensor_alloc(&zero);
    if (!status) {
        memset(zero.data, 0, (size_t)nsa_count(&zero) * nsa_dtype_size(zero.dtype));
        status = compare_gradient(tol, id, mine, &zero, units);
        tensor_free(&zero);
    }
    return status;
}

static nsa_status compare_all(const workload *w, nsa_arith arith, int causal,
                              const nsa_tensors *mine, const nsa_tensors *truth) {
    const tolerance *tol = tolerance_of(arith);
    nsa_tensors in = w->in;
    nsa_status status = compare_output(tol, NSA_OUT, &mine->at[NSA_OUT], &truth->at[NSA_OUT]);
    if (status || w->pass != BENCH_BACKWARD)
        return status;
    in.at[NSA_DOUT] = w->sparse;
    const gradient_units units = units_of(&w->judged.cfg, &in);
    for (int id = NSA_GRAD_FIRST; id <= NSA_GRAD_LAST && !status; id++) {
        int counts = !causal || id == NSA_DQ || id == NSA_DK_WIN || id == NSA_DV_WIN;
        if (!counts || !nsa_has(&w->cfg, (nsa_id)id))
            continue;
        if (id == NSA_DPHI_K_B2)
            status = compare_with_zero(tol, (nsa_id)id, &mine->at[id], &units);
        else
            status = compare_gradient(tol, (nsa_id)id, &mine->at[id], &truth->at[id], &units);
    }
    return status;
}

/* The position of each sampled row in its own sequence. */
static void find_positions(const workload *w, int64_t *position) {
    nsa_tensors in = w->in;
    in.at[NSA_ROWS] = w->rows;
    if (w->pass != BENCH_DECODE)
        row_positions(&in, w->judged.cfg.seq_len, position);
    for (int64_t r = 0; r < w->rows.shape[0] && w->pass == BENCH_DECODE; r++)
        position[r] = tensor_ints(&w->rows)[r];
}

static nsa_status judge_selection(const workload *w, nsa_arith arith, const nsa_tensor *mine,
                                  const nsa_tensors *truth) {
    int64_t *position = calloc((size_t)w->rows.shape[0] + 1, sizeof *position);
    if (!position)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %" PRId64 " positions", w->rows.shape[0]);
    find_positions(w, position);
    nsa_status status = compare_selection(&w->judged.cfg, position, mine, &truth->at[NSA_BLOCK_IDX],
                                          &truth->at[NSA_IMPORTANCE], tolerance_of(arith)->slack);
    free(position);
    return status;
}

nsa_status verify(const workload *w, const nsa_stage *oracle, nsa_arith arith, int causal,
                  const nsa_tensors *mine) {
    const nsa_tensors *truth = &w->truth[causal];
    const nsa_tensor *idx = &mine->at[NSA_BLOCK_IDX];
    nsa_tensors forced = {0};
    nsa_status status = NSA_OK;
    if (!causal)
        status = judge_selection(w, arith, idx, truth);
    if (!status && !causal && !tensor_same(idx, &truth->at[NSA_BLOCK_IDX])) {
        /* with the candidate's blocks, so that a flipped near-tie neither hides nor fakes an error
         */
        status = verify_run(w, oracle, 0, idx, &forced);
        truth = &forced;
    }
    status = status ? status : compare_all(w, arith, causal, mine, truth);
    tensors_free(&forced);
    return status;
}

nsa_status verify_gather(const nsa_tensor *rows, const nsa_tensor *all, nsa_tensor *sampled) {
    const size_t row = (size_t)tensor_row(all) * nsa_dtype_size(all->dtype);
    for (int64_t i = 0, count = nsa_count(all); i < count; i++) {
        if (!isfinite(tensor_get(all, i)))
            return nsa_fail(NSA_ERR_INPUT, "element %" PRId64 " of row %" PRId64 " is not finite",
                            i % tensor_row(all), i / tensor_row(all));
    }
    *sampled = *all;
    sampled->shape[0] = rows->shape[0];
    nsa_status status = tensor_alloc(sampled);
    for (int64_t r = 0; r < sampled->shape[0] && !status; r++)
        memcpy((char *)sampled->data + (size_t)r * row,
               (const char *)all->data + (size_t)tensor_ints(rows)[r] * row, row);
    return status;
}

nsa_status verify_small(const nsa_found *found, const nsa_stage *oracle, const bench_options *o,
                        bench_pass pass) {
    static nsa_status (*const judge[])(const subject *, const test_case *) = {
        judge_forward, judge_backward, judge_decode};
    const subject who = {found->stage, oracle, found->name};
    char text[64], why[160];
    test_case c;
    snprintf(text, sizeof text, "T=130,phi=%s,hidden=12,seed=%d", nsa_phi_name(o->cfg.phi),
             (int)o->seed);
    if (found->stage->available() || case_parse(text, &c))
        return NSA_OK;
    nsa_status status = judge[pass](&who, &c);
    if (!status || status == NSA_ERR_UNSUPPORTED)
        return NSA_OK;
    snprintf(why, sizeof why, "%.120s", nsa_last_error());
    return nsa_fail(status, "%s (%s)", why, text);
}

/* --------------------------------------------------------- choosing the oracle */

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
        j->oracle_seconds * (double)T * share <= (double)j->o->budget)
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
