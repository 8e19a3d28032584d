/** @file prop_threads.c
 *  @brief Property: results do not depend on the number of threads. */
#include "harness/compare.h"
#include "harness/properties.h"
#include "harness/tensor.h"

/* Every result that `a` has is in `b`, bit for bit. */
static nsa_status same_bits(const nsa_tensors *a, const nsa_tensors *b, const char *what,
                            int threads) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (a->at[id].dtype && !tensor_same(&a->at[id], &b->at[id]))
            return nsa_fail(NSA_ERR_INPUT, "%s differs between %s %d threads", nsa_name((nsa_id)id),
                            what, threads);
    }
    return NSA_OK;
}

/* Two runs with `threads` threads: every result the same bits both times. */
static nsa_status run_both(const subject *s, const test_case *c, const nsa_tensors *in, int threads,
                           nsa_tensors *first) {
    const int flags = RUN_BACKWARD | threads * RUN_THREADS;
    nsa_tensors second = {0};
    nsa_status status = run_stage(s->stage, &c->cfg, in, flags, first);
    status = status ? status : run_stage(s->stage, &c->cfg, in, flags, &second);
    status = status ? status : same_bits(first, &second, "two runs with", threads);
    tensors_free(&second);
    return status;
}

/* A gradient of a key is a sum over rows, which threads may split in different ways. So compare it
 * with the oracle, within the tolerance: a float32 run cannot tell which gradients are zero. */
static nsa_status judge_gradients(const subject *s, const nsa_tensors *oracle,
                                  const nsa_tensors *mine, const gradient_units *units) {
    nsa_status status = NSA_OK;
    for (int id = NSA_GRAD_FIRST; id <= NSA_GRAD_LAST && !status; id++) {
        if (mine->at[id].dtype)
            status = compare_gradient(tolerance_of(s->stage->arith), (nsa_id)id, &mine->at[id],
                                      &oracle->at[id], units);
    }
    return status;
}

/* A row is computed by one thread, so outputs and selection keep their bits, in forward and
 * decode. */
static nsa_status judge_row_bits(const subject *s, const test_case *c, const nsa_tensors *in,
                                 const nsa_tensors *one, nsa_tensors *mine, int threads) {
    const int64_t prefix = case_max_len(c) / 2;
    nsa_tensors alone = {0}, steps = {0};
    for (int id = NSA_GRAD_FIRST; id <= NSA_GRAD_LAST; id++)
        tensor_free(&mine->at[id]);
    nsa_status status = same_bits(mine, one, "1 and", threads);
    if (status || !s->stage->decode)
        return status;
    status = run_decode(s->stage, &c->cfg, in, prefix, RUN_THREADS, &alone);
    status =
        status ? status : run_decode(s->stage, &c->cfg, in, prefix, threads * RUN_THREADS, &steps);
    status = status ? status : same_bits(&alone, &steps, "decode with 1 and", threads);
    tensors_free(&alone);
    tensors_free(&steps);
    return status;
}

const char *threads_cannot(const subject *s) {
    return s->stage->device ? "it runs on a device, whatever the host's threads" : NULL;
}

/* 1, 2, 3 and 7 threads: fewer and more than the cores, and not all divide the work evenly. */
nsa_status judge_threads(const subject *s, const test_case *c) {
    static const int counts[] = {2, 3, 7};
    nsa_tensors in, one = {0}, oracle = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : run_both(s, c, &in, 1, &one);
    status = status ? status : all_finite(&one);
    status = status ? status : force_blocks(&c->cfg, &in, &one.at[NSA_BLOCK_IDX]);
    status = status ? status : run_stage(s->oracle, &c->cfg, &in, RUN_BACKWARD, &oracle);
    tensor_free(&in.at[NSA_BLOCK_IDX]);
    const gradient_units units = units_for(s, c, &in);
    for (int i = 0; i < 3 && !status; i++) {
        nsa_tensors many = {0};
        status = run_both(s, c, &in, counts[i], &many);
        status = status ? status : judge_gradients(s, &oracle, &many, &units);
        status = status ? status : judge_row_bits(s, c, &in, &one, &many, counts[i]);
        tensors_free(&many);
    }
    tensors_free(&in);
    tensors_free(&one);
    tensors_free(&oracle);
    return status;
}
