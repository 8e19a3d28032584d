/** @file verify.c
 *  @brief Sampled rows against the oracle's. */
#include "bench/contender.h"
#include "harness/compare.h"
#include "harness/run.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <stdlib.h>

/* Run a stage on inputs; with block_idx [R,Hkv,n] its blocks are forced. With `causal` 1, `out` is
 * plain causal attention over the window's pair: window = T, gates 0, 0, 1. */
static nsa_status judge_rows(const workload *w, const nsa_stage *stage, int causal, nsa_tensors *in,
                             const nsa_tensor *block_idx, nsa_tensors *results) {
    const int flags = (w->pass == BENCH_BACKWARD ? RUN_BACKWARD : RUN_FORWARD) + RUN_UNFENCED +
                      RUN_THREADS * w->threads;
    nsa_tensor gate = {0};
    nsa_config cfg = w->judged.cfg;
    nsa_status status = NSA_OK;
    if (causal) {
        cfg.window = cfg.seq_len;
        status = workload_gate(&gate, in);
    }
    if (!status && block_idx)
        status = force_blocks(&cfg, in, block_idx);
    status = status ? status : run_stage(stage, &cfg, in, flags, results);
    tensor_free(&in->at[NSA_BLOCK_IDX]);
    tensor_free(&gate);
    return status;
}

/* The sequence of a slot, with the query and gates of its last warm-up step, the one of `rows`. */
static nsa_tensors slot_inputs(const workload *w, int64_t slot, const nsa_tensor *rows) {
    const int64_t row = tensor_ints(rows)[0];
    nsa_tensors in = workload_slot(w, slot, w->T + DECODE_WARM);
    in.at[NSA_ROWS] = *rows;
    for (int k = 0; k < 2; k++) {
        const nsa_tensor *from = &w->step.at[k ? NSA_GATE : NSA_Q];
        const int64_t size = tensor_row(from), step = (DECODE_WARM - 1) * w->B + slot;
        memcpy((float *)w->blank[k].data + row * size, (const float *)from->data + step * size,
               (size_t)size * sizeof(float));
    }
    return in;
}

static nsa_status judge_slots(const workload *w, const nsa_stage *stage, int causal,
                              const nsa_tensor *block_idx, nsa_tensors *results) {
    static const nsa_id wanted[] = {NSA_OUT, NSA_BLOCK_IDX, NSA_IMPORTANCE};
    int32_t row = (int32_t)(w->T + DECODE_WARM - 1);
    const nsa_tensor last = {&row, NSA_I32, 1, {1}, NSA_HOST};
    nsa_status status = NSA_OK;
    memset(results, 0, sizeof *results);
    for (int64_t i = 0; i < w->rows.shape[0] && !status; i++) {
        nsa_tensors one = {0}, in = slot_inputs(w, tensor_ints(&w->rows)[i], &last);
        nsa_tensor list = block_idx ? *block_idx : w->rows;
        list.data = tensor_ints(&list) + i * tensor_row(&list);
        list.shape[0] = 1;
        status = judge_rows(w, stage, causal, &in, block_idx ? &list : NULL, &one);
        for (int k = 0; k < 3 && !status; k++) {
            nsa_tensor *all = &results->at[wanted[k]], *mine = &one.at[wanted[k]];
            const size_t bytes = (size_t)nsa_count(mine) * nsa_dtype_size(mine->dtype);
            if (!all->dtype) { /* the first slot */
                *all = *mine;
                all->shape[0] = w->rows.shape[0];
                status = tensor_alloc(all);
            }
            if (!status)
                memcpy((char *)all->data + (size_t)i * bytes, mine->data, bytes);
        }
        tensors_free(&one);
    }
    return status;
}

/* Compute the sampled rows by a stage; block_idx [R,Hkv,n] to force, or NULL to select. */
static nsa_status verify_run(const workload *w, const nsa_stage *stage, int causal,
                             const nsa_tensor *block_idx, nsa_tensors *results) {
    nsa_tensors in = w->in;
    if (w->pass == BENCH_DECODE)
        return judge_slots(w, stage, causal, block_idx, results);
    in.at[NSA_ROWS] = w->rows;
    if (w->pass == BENCH_BACKWARD)
        in.at[NSA_DOUT] = w->sparse;
    return judge_rows(w, stage, causal, &in, block_idx, results);
}

/* dphi_k_b2 is zero by identity: of an oracle in float32 its rounding errors are taken away. */
static nsa_status run_oracle(const workload *w, const nsa_stage *oracle, int causal,
                             const nsa_tensor *block_idx, nsa_tensors *results) {
    nsa_tensor *b2 = &results->at[NSA_DPHI_K_B2];
    nsa_status status = verify_run(w, oracle, causal, block_idx, results);
    for (int64_t i = 0; !status && b2->dtype && i < nsa_count(b2); i++)
        tensor_set(b2, i, 0);
    return status;
}

nsa_status verify_truth(workload *w, const nsa_stage *oracle, int causal) {
    if (w->truth[causal].at[NSA_OUT].dtype)
        return NSA_OK;
    return run_oracle(w, oracle, causal, NULL, &w->truth[causal]);
}

int verify_wants(const workload *w, int causal, nsa_id id) {
    if (id < NSA_GRAD_FIRST || id > NSA_GRAD_LAST)
        return id == NSA_OUT || (id == NSA_BLOCK_IDX && !causal);
    return w->pass == BENCH_BACKWARD && nsa_has(&w->cfg, id) &&
           (!causal || id == NSA_DQ || id == NSA_DK_WIN || id == NSA_DV_WIN);
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
        if (verify_wants(w, causal, (nsa_id)id))
            status = compare_gradient(tol, (nsa_id)id, &mine->at[id], &truth->at[id], &units);
    }
    return status;
}

static nsa_status judge_selection(const workload *w, nsa_arith arith, const nsa_tensor *mine,
                                  const nsa_tensors *truth) {
    const int64_t rows = w->rows.shape[0];
    int64_t *position = calloc((size_t)rows + 1, sizeof *position); /* in its own sequence */
    nsa_tensors in = w->in;
    if (!position)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %" PRId64 " positions", rows);
    in.at[NSA_ROWS] = w->rows;
    if (w->pass != BENCH_DECODE)
        row_positions(&in, w->judged.cfg.seq_len, position);
    for (int64_t r = 0; r < rows && w->pass == BENCH_DECODE; r++)
        position[r] = w->T + DECODE_WARM - 1;
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
        /* with its own blocks, so that a flipped near-tie neither hides nor fakes an error */
        status = run_oracle(w, oracle, 0, idx, &forced);
        truth = &forced;
    }
    status = status ? status : compare_all(w, arith, causal, mine, truth);
    tensors_free(&forced);
    return status;
}

nsa_status verify_judge(const bench_options *o, bench_pass pass, const nsa_stage *judge) {
    const int64_t longest = o->T[o->sizes - 1], T = longest < 1024 ? longest : 1024;
    nsa_tensors mine = {0};
    nsa_found oracle;
    workload w;
    nsa_status status = nsa_find_stage(o->stage_dir, "00", &oracle);
    if (status)
        return status;
    status = workload_open(o, pass, T, NSA_FLOAT32, &w);
    status = status ? status : verify_truth(&w, oracle.stage, 0);
    status = status ? status : verify_run(&w, judge, 0, NULL, &mine);
    status = status ? status : verify(&w, oracle.stage, judge->arith, 0, &mine);
    if (status)
        status = nsa_fail(status, "--judge %s, %s: %.300s", o->judge, bench_pass_name(pass),
                          nsa_last_error());
    tensors_free(&mine);
    workload_close(&w);
    nsa_free_stage(&oracle);
    return status;
}
