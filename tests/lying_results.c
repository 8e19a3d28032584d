/** @file lying_results.c
 *  @brief The lies about results: how each changes the results of a correct stage. */
#include "lying_stage.h"

#include <math.h>
#include <string.h>

double lying_get(const nsa_tensor *t, int64_t i) {
    return t->dtype == NSA_F64   ? ((const double *)t->data)[i]
           : t->dtype == NSA_F32 ? (double)((const float *)t->data)[i]
                                 : ((const int32_t *)t->data)[i];
}

void lying_set(const nsa_tensor *t, int64_t i, double value) {
    if (t->dtype == NSA_F64)
        ((double *)t->data)[i] = value;
    else if (t->dtype == NSA_F32)
        ((float *)t->data)[i] = (float)value;
    else
        ((int32_t *)t->data)[i] = (int32_t)value;
}

/* -------------------------------------------------------- lies about results */

static void one_nan(const liar *s, const nsa_tensor *t) {
    (void)s;
    lying_set(t, nsa_count(t) / 2, NAN);
}

static void one_infinite(const liar *s, const nsa_tensor *t) {
    (void)s;
    lying_set(t, nsa_count(t) - 1, INFINITY);
}

/* Off by 1.5 times the tolerance of float32: 1e-5 in the rms ratio, ... */
static void all_off(const liar *s, const nsa_tensor *t) {
    (void)s;
    for (int64_t i = 0; i < nsa_count(t); i++)
        lying_set(t, i, lying_get(t, i) * (1 + 1.5e-5));
}

/* ... 1e-4 of the largest in one element, ... */
static void one_off(const liar *s, const nsa_tensor *t) {
    double largest = 0;
    (void)s;
    for (int64_t i = 0; i < nsa_count(t); i++)
        largest = fmax(largest, fabs(lying_get(t, i)));
    lying_set(t, 0, lying_get(t, 0) + 1.5e-4 * largest);
}

/* ... and 5e-5 in the rms ratio of a gradient. */
static void gradient_off(const liar *s, const nsa_tensor *t) {
    (void)s;
    for (int64_t i = 0; i < nsa_count(t); i++)
        lying_set(t, i, lying_get(t, i) * (1 + 7.5e-5));
}

/* Keys that a bfloat16 stage did not score with, although within its tolerance of 5e-3. */
static void other_keys(const liar *s, const nsa_tensor *t) {
    (void)s;
    for (int64_t i = 0; i < nsa_count(t); i++)
        lying_set(t, i, lying_get(t, i) * (i % 2 ? 1 + 4e-3 : 1 - 4e-3));
}

/* Well within float32's tolerance, but central differences detect it in a float64 stage. */
static void slope_off(const liar *s, const nsa_tensor *t) {
    (void)s;
    for (int64_t i = 0; i < nsa_count(t); i++)
        lying_set(t, i, lying_get(t, i) * (1 + 5e-6));
}

static void all_zero(const liar *s, const nsa_tensor *t) {
    (void)s;
    memset(t->data, 0, (size_t)nsa_count(t) * nsa_dtype_size(t->dtype));
}

static void all_tenths(const liar *s, const nsa_tensor *t) {
    (void)s;
    for (int64_t i = 0; i < nsa_count(t); i++)
        lying_set(t, i, 0.1);
}

static void swap_gates(const liar *s, const nsa_tensor *t) {
    (void)s;
    for (int64_t i = 0; i + 2 < nsa_count(t); i += 3) {
        const double kept = lying_get(t, i);
        lying_set(t, i, lying_get(t, i + 2));
        lying_set(t, i + 2, kept);
    }
}

static void past_the_end(const liar *s, const nsa_tensor *t) {
    (void)s;
    lying_set(t, nsa_count(t), 1);
}

static void before_the_start(const liar *s, const nsa_tensor *t) {
    (void)s;
    lying_set(t, -1, 1);
}

/* Results that depend on a forbidden input: the added term is 0 or tiny, unless the input is NaN or
 * changes. */
static void looks_at_sequence(const liar *s, const nsa_tensor *t) {
    lying_set(t, nsa_count(t) - 1, lying_get(t, nsa_count(t) - 1) + 0 * s->first_q);
}

static void looks_ahead(const liar *s, const nsa_tensor *t) {
    lying_set(t, 0, lying_get(t, 0) + 1e-6 * s->last_q);
}

static void looks_behind_window(const liar *s, const nsa_tensor *t) {
    lying_set(t, nsa_count(t) - 1, lying_get(t, nsa_count(t) - 1) + 0 * s->first_k_win);
}

static void reads_one_more(const liar *s, const nsa_tensor *t) {
    lying_set(t, nsa_count(t) - 1, lying_get(t, nsa_count(t) - 1) + 1e-4 * s->first_v_win);
}

static void looks_at_scratch(const liar *s, const nsa_tensor *t) {
    lying_set(t, 0, lying_get(t, 0) + 0 * s->stale);
}

/* Change one bit if `when`. */
static void one_bit(const nsa_tensor *t, int when) {
    if (when)
        lying_set(t, 0, (double)nextafterf((float)lying_get(t, 0), 1e9F));
}

static void on_second_call(const liar *s, const nsa_tensor *t) {
    (void)s;
    one_bit(t, lying_forwards % 2 == 0);
}

static void on_second_load(const liar *s, const nsa_tensor *t) {
    one_bit(t, s->loads > 1);
}

static void beside_another(const liar *s, const nsa_tensor *t) {
    (void)s;
    one_bit(t, lying_opened > 1);
}

static void if_lean(const liar *s, const nsa_tensor *t) {
    one_bit(t, !(s->plan->setup.flags & NSA_WANT_BRANCHES));
}

static void if_wide(const liar *s, const nsa_tensor *t) {
    one_bit(t, s->wide);
}

static void with_three_threads(const liar *s, const nsa_tensor *t) {
    one_bit(t, s->plan->setup.threads == 3);
}

static void if_one_hot(const liar *s, const nsa_tensor *t) {
    if (s->first_gate == 0 || s->first_gate == 1)
        all_off(s, t);
}

static void if_rows(const liar *s, const nsa_tensor *t) {
    if (s->batch->R < s->batch->T)
        all_off(s, t);
}

static void if_forced(const liar *s, const nsa_tensor *t) {
    if (s->forced)
        all_zero(s, t);
}

static void if_decoded(const liar *s, const nsa_tensor *t) {
    if (s->step)
        all_off(s, t);
}

/* ------------------------------------------------------- lies about the choice */

/* The last list: its row has selected some blocks and rejected others. */
static int32_t *last_list(const nsa_tensor *t) {
    return (int32_t *)t->data + nsa_count(t) - t->shape[2];
}

static void twice(const liar *s, const nsa_tensor *t) {
    (void)s;
    last_list(t)[1] = last_list(t)[0];
}

static void beyond(const liar *s, const nsa_tensor *t) {
    (void)s;
    last_list(t)[t->shape[2] - 1] += 1;
}

static void not_ascending(const liar *s, const nsa_tensor *t) {
    int32_t *list = last_list(t), kept = list[0];
    (void)s;
    list[0] = list[1];
    list[1] = kept;
}

static void padded_with_zero(const liar *s, const nsa_tensor *t) {
    int32_t *list = t->data; /* row 0 has one block */
    (void)s;
    list[t->shape[2] - 1] = 0;
}

/* Replace entry `pos` of the last list by another block, keeping the order: the highest that is
 * free below the next entry. */
static void another(const nsa_tensor *t, int64_t pos) {
    int32_t *list = last_list(t);
    for (int32_t block = list[pos + 1] - 1; block > list[pos - 1]; block--) {
        if (block != list[pos]) {
            list[pos] = block;
            return;
        }
    }
}

static void lacks_local(const liar *s, const nsa_tensor *t) {
    another(t, t->shape[2] - s->plan->cfg.slc_local);
}

static void second_best(const liar *s, const nsa_tensor *t) {
    for (int64_t pos = s->plan->cfg.slc_init; pos < t->shape[2] - s->plan->cfg.slc_local; pos++)
        another(t, pos);
}

static void if_nan(const liar *s, const nsa_tensor *t) {
    if (isnan(s->last_q))
        second_best(s, t);
}

static void forced_in_disorder(const liar *s, const nsa_tensor *t) {
    int32_t *list = t->data;
    for (int64_t i = 0; s->forced && i + 1 < nsa_count(t); i += t->shape[2]) {
        const int32_t kept = list[i];
        if (list[i + 1] < 0)
            continue;
        list[i] = list[i + 1];
        list[i + 1] = kept;
        return;
    }
}

/* The result that each lie changes. */
static const struct {
    const char *name;
    nsa_id id;
    void (*spoil)(const liar *s, const nsa_tensor *t);
} spoils[] = {
    {"out_nan", NSA_OUT, one_nan},
    {"out_infinite", NSA_OUT, one_infinite},
    {"importance_nan", NSA_IMPORTANCE, one_nan},
    {"gradient_nan", NSA_DK_SLC, one_nan},
    {"out_off", NSA_OUT, all_off},
    {"out_one_off", NSA_OUT, one_off},
    {"out_cmp_off", NSA_OUT_CMP, all_off},
    {"out_slc_off", NSA_OUT_SLC, all_off},
    {"out_win_off", NSA_OUT_WIN, all_off},
    {"importance_off", NSA_IMPORTANCE, all_off},
    {"k_phi_off", NSA_K_PHI, all_off},
    {"v_phi_off", NSA_V_PHI, all_off},
    {"k_phi_one_off", NSA_K_PHI, one_off},
    {"k_phi_not_scored", NSA_K_PHI, other_keys},
    {"gradient_off", NSA_DV_CMP, gradient_off},
    {"gradient_zero", NSA_DV_WIN, all_zero},
    {"last_gradient_zero", NSA_DPHI_V_B2, all_zero},
    {"zero_gradient_tenth", NSA_DPHI_K_B2, all_tenths},
    {"gate_gradients_swapped", NSA_DGATE, swap_gates},
    {"slope_off", NSA_DQ, slope_off},
    {"past_the_end", NSA_OUT, past_the_end},
    {"before_the_start", NSA_OUT, before_the_start},
    {"looks_at_sequence", NSA_OUT, looks_at_sequence},
    {"looks_ahead", NSA_OUT, looks_ahead},
    {"looks_behind_window", NSA_OUT_WIN, looks_behind_window},
    {"reads_one_more", NSA_OUT_WIN, reads_one_more},
    {"second_call", NSA_OUT, on_second_call},
    {"second_load", NSA_DQ, on_second_load},
    {"stale_scratch", NSA_OUT, looks_at_scratch},
    {"beside_another", NSA_DQ, beside_another},
    {"lean", NSA_OUT, if_lean},
    {"float64_inputs", NSA_OUT, if_wide},
    {"three_threads", NSA_OUT, with_three_threads},
    {"one_hot", NSA_OUT, if_one_hot},
    {"rows_off", NSA_V_PHI, if_rows},
    {"forced_importance_zero", NSA_IMPORTANCE, if_forced},
    {"forced_gradient_zero", NSA_DK_CMP, if_forced},
    {"decode_off", NSA_OUT_SLC, if_decoded},
    {"decode_cmp_off", NSA_OUT_CMP, if_decoded},
    {"causal_off", NSA_OUT_CAUSAL, all_off},
    {"idx_twice", NSA_BLOCK_IDX, twice},
    {"idx_beyond", NSA_BLOCK_IDX, beyond},
    {"idx_not_ascending", NSA_BLOCK_IDX, not_ascending},
    {"idx_padded_with_zero", NSA_BLOCK_IDX, padded_with_zero},
    {"idx_lacks_local", NSA_BLOCK_IDX, lacks_local},
    {"idx_second_best", NSA_BLOCK_IDX, second_best},
    {"idx_of_nan", NSA_BLOCK_IDX, if_nan},
    {"idx_forced_in_disorder", NSA_BLOCK_IDX, forced_in_disorder},
};

enum { SPOILS = sizeof spoils / sizeof spoils[0] };

int lie_of_result(const char *name) {
    int known = 0;
    for (int i = 0; i < SPOILS; i++)
        known |= !strcmp(spoils[i].name, name);
    return known;
}

void lie_about(const char *name, const liar *s, nsa_id id, const nsa_tensor *t) {
    for (int i = 0; i < SPOILS; i++) {
        if (spoils[i].id == id && !strcmp(spoils[i].name, name))
            spoils[i].spoil(s, t);
    }
}
