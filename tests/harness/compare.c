/** @file compare.c
 *  @brief Comparisons, each written as "within the tolerance", so that NaN fails. */
#include "harness/compare.h"
#include "harness/difference.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

const tolerance *tolerance_of(nsa_arith arith) {
    static const tolerance table[] = {
        [NSA_FLOAT64] = {1e-12, 1e-11, 1e-10, 1e-10, 1e-12, 0},
        [NSA_FLOAT32] = {1e-5, 1e-4, 5e-5, 5e-5, 1e-5, 1e-5},
        [NSA_BFLOAT16] = {5e-3, 4e-2, 1e-2, 3e-2, 2e-2, 1e-5},
    };
    return &table[arith];
}

double rms_of(const nsa_tensor *t) {
    double sum = 0;
    int64_t count = t->dtype ? nsa_count(t) : 0;
    for (int64_t i = 0; i < count; i++)
        sum += tensor_get(t, i) * tensor_get(t, i);
    return count ? sqrt(sum / (double)count) : 0;
}

nsa_status measure(nsa_id id, const nsa_tensor *a, const nsa_tensor *b, difference *d) {
    int64_t count = nsa_count(a);
    if (a->ndim != b->ndim || count != nsa_count(b) ||
        memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof a->shape[0]))
        return nsa_fail(NSA_ERR_INPUT, "%s has another shape than the oracle's", nsa_name(id));
    *d = (difference){.non_finite = -1, .rms_b = rms_of(b)};
    for (int64_t i = 0; i < count; i++) {
        double x = tensor_get(a, i), y = tensor_get(b, i), off = fabs(x - y);
        if (!isfinite(y)) /* nothing can be close to it */
            return nsa_fail(NSA_ERR_INPUT,
                            "%s is compared with what is not finite: element %" PRId64 " is %g",
                            nsa_name(id), i, y);
        if (!isfinite(x) && d->non_finite < 0)
            d->non_finite = i;
        d->rms += off * off;
        d->max_b = fabs(y) > d->max_b ? fabs(y) : d->max_b;
        if (!(off <= d->max)) {
            d->max = off;
            d->index = i;
        }
    }
    d->rms = count ? sqrt(d->rms / (double)count) : 0;
    if (d->non_finite >= 0)
        return nsa_fail(NSA_ERR_INPUT, "%s[%" PRId64 "] = %g (row %" PRId64 ") is not finite",
                        nsa_name(id), d->non_finite, tensor_get(a, d->non_finite),
                        d->non_finite / tensor_row(a));
    return NSA_OK;
}

nsa_status all_finite(const nsa_tensors *results) {
    for (int id = NSA_OUT; id <= NSA_OUT_CAUSAL; id++) {
        const nsa_tensor *t = &results->at[id];
        for (int64_t i = 0; t->dtype && i < nsa_count(t); i++) {
            if (!isfinite(tensor_get(t, i)))
                return nsa_fail(NSA_ERR_INPUT, "%s[%" PRId64 "] = %g is not finite",
                                nsa_name((nsa_id)id), i, tensor_get(t, i));
        }
    }
    return NSA_OK;
}

nsa_status compare_output(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                          const nsa_tensor *b) {
    difference d;
    if (a->dtype == NSA_I32) /* integers must be equal */
        return tensor_same(a, b) ? NSA_OK
                                 : nsa_fail(NSA_ERR_INPUT, "%s is not the oracle's", nsa_name(id));
    nsa_status status = measure(id, a, b, &d);
    if (status)
        return status;
    if (!(d.rms <= tol->out_rms * d.rms_b))
        return nsa_fail(
            NSA_ERR_INPUT,
            "%s is off by rms %.3g of rms %.3g, allowed %.0e of it; worst in row %" PRId64,
            nsa_name(id), d.rms, d.rms_b, tol->out_rms, d.index / tensor_row(a));
    if (!(d.max <= tol->out_max * d.max_b))
        return nsa_fail(NSA_ERR_INPUT,
                        "%s is off by up to %.3g, allowed %.0e of %.3g; worst in row %" PRId64,
                        nsa_name(id), d.max, tol->out_max, d.max_b, d.index / tensor_row(a));
    return NSA_OK;
}

/* ---------------------------------------------------------------- selection */

static int holds(const int32_t *list, int64_t n, int64_t block) {
    for (int64_t i = 0; i < n; i++) {
        if (list[i] == block)
            return 1;
    }
    return 0;
}

/* Check a list: min(n, b+1) ascending blocks of [0,b], forced blocks included, then -1. */
static nsa_status check_list(const nsa_config *cfg, const int32_t *list, int64_t own_block,
                             int64_t row) {
    int64_t n = cfg->slc_count, count = own_block + 1 < n ? own_block + 1 : n;
    for (int64_t i = 0; i < n; i++) {
        if (i >= count ? list[i] != -1
                       : list[i] < 0 || list[i] > own_block || (i && list[i] <= list[i - 1]))
            return nsa_fail(NSA_ERR_INPUT,
                            "block_idx of row %" PRId64 " holds %d at index %" PRId64
                            ": not %" PRId64 " ascending blocks of 0..%" PRId64 ", then -1",
                            row, list[i], i, count, own_block);
    }
    for (int64_t j = 0; j <= own_block; j++) {
        int forced = j < cfg->slc_init || j > own_block - cfg->slc_local;
        if (forced && !holds(list, n, j))
            return nsa_fail(NSA_ERR_INPUT,
                            "block_idx of row %" PRId64 " lacks forced block %" PRId64, row, j);
    }
    return NSA_OK;
}

/* v: the smallest importance among the oracle's freely selected blocks; NaN if none is free. */
static double topk_threshold(const nsa_config *cfg, const int32_t *list, int64_t own_block,
                             const nsa_tensor *importance, int64_t row_offset) {
    double v = NAN;
    for (int64_t i = 0; i < cfg->slc_count && list[i] >= 0; i++) {
        int forced = list[i] < cfg->slc_init || list[i] > own_block - cfg->slc_local;
        double imp = tensor_get(importance, row_offset + list[i]);
        if (!forced && !(imp >= v))
            v = imp;
    }
    return v;
}

nsa_status compare_selection(const nsa_config *cfg, const int64_t *position, const nsa_tensor *a,
                             const nsa_tensor *b, const nsa_tensor *importance, double slack) {
    int64_t n = cfg->slc_count, J = importance->shape[2];
    for (int64_t i = 0; i < a->shape[0] * cfg->kv_heads; i++) {
        int64_t row = i / cfg->kv_heads, own_block = position[row] / cfg->slc_block;
        const int32_t *mine = tensor_ints(a) + i * n, *oracle = tensor_ints(b) + i * n;
        nsa_status status = check_list(cfg, mine, own_block, row);
        if (status)
            return status;
        double v = topk_threshold(cfg, oracle, own_block, importance, i * J);
        double allowed = slack * fmax(v, 1e-30);
        for (int64_t j = 0; j <= own_block; j++) {
            int selected = holds(mine, n, j), expected = holds(oracle, n, j);
            double off = fabs(tensor_get(importance, i * J + j) - v);
            if (selected != expected && !(slack > 0 && off <= allowed))
                return nsa_fail(NSA_ERR_INPUT,
                                "row %" PRId64 ", kv head %" PRId64 " %s block %" PRId64
                                ": importance %.9g, the last free block has %.9g, slack %.0e",
                                row, i % cfg->kv_heads, selected ? "selected" : "did not select", j,
                                tensor_get(importance, i * J + j), v, slack);
        }
    }
    return NSA_OK;
}
