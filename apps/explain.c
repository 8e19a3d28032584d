/** @file explain.c
 *  @brief `nsa run --explain`: run one query on a stage, compute it a second time, and compare. */
#include "explain.h"

#include "common/counts.h"
#include "common/tensors.h"
#include "nsa_stage.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What two float64 computations of the same sum may differ by, relative to its terms. */
static const double TOLERANCE = 1e-13;

/* --------------------------------------------------------------------- memory */

/* Zeroed memory that explain_free() frees. */
static void *explain_alloc(explanation *e, int64_t count, size_t size) {
    void *p = e->allocations < 64 ? calloc(count > 0 ? (size_t)count : 1, size) : NULL;
    if (p)
        e->memory[e->allocations++] = p;
    return p;
}

void explain_free(explanation *e) {
    for (int i = 0; i < e->allocations; i++)
        free(e->memory[i]);
    memset(e, 0, sizeof *e);
}

static nsa_status no_memory(void) {
    return nsa_fail(NSA_ERR_MEMORY, "no memory to explain a query");
}

/* --------------------------------------------------------------------- inputs */

/* What cannot be explained is said before anything is computed. */
static nsa_status check_query(const explanation *e) {
    const nsa_config *c = &e->input->cfg;
    const nsa_tensor *cu = &e->input->in.at[NSA_CU_SEQLENS];
    const int64_t T = e->input->in.at[NSA_Q].shape[0];
    if (e->stage->stage->arith != NSA_FLOAT64)
        return nsa_fail(NSA_ERR_INPUT,
                        "--explain compares every number in float64, expected a stage that "
                        "computes in it, such as 00, not %s",
                        e->stage->name);
    if (cu->dtype && cu->shape[0] != 2)
        return nsa_fail(NSA_ERR_INPUT,
                        "--explain takes one sequence, but cu_seqlens.npy packs %" PRId64,
                        cu->shape[0] - 1);
    if (e->t >= T)
        return nsa_fail(NSA_ERR_INPUT,
                        "--explain %" PRId64 ": the case has positions 0 to %" PRId64, e->t, T - 1);
    if (e->kv_head >= c->kv_heads)
        return nsa_fail(NSA_ERR_INPUT,
                        "--explain %" PRId64 ",%" PRId64 ": the case has kv heads 0 to %" PRId64,
                        e->t, e->kv_head, c->kv_heads - 1);
    return NSA_OK;
}

/* The rows of one head of [rows,heads,D], as [rows,D]; `count` neighbouring heads as
 * [rows,count,D]. NULL if there is no memory. */
static double *copy_heads(explanation *e, const nsa_tensor *from, int64_t head, int64_t count) {
    const int64_t rows = from->shape[0], heads = from->shape[1], D = from->shape[2];
    double *to = explain_alloc(e, rows * count * D, sizeof *to);
    for (int64_t r = 0; to && r < rows; r++)
        nsa_copy_f64(to + r * count * D, from, (r * heads + head) * D, count * D);
    return to;
}

/* The same of the query's row alone. */
static double *copy_row(explanation *e, const nsa_tensor *from, int64_t head, int64_t count) {
    const int64_t heads = from->shape[1], D = from->shape[2];
    double *to = explain_alloc(e, count * D, sizeof *to);
    if (to)
        nsa_copy_f64(to, from, (e->t * heads + head) * D, count * D);
    return to;
}

/* The query's heads, its gates, and the keys and values that are read as they are. */
static nsa_status copy_inputs(explanation *e) {
    const nsa_tensor *in = e->input->in.at;
    explain_branch *slc = &e->branch[EXPLAIN_SLC], *win = &e->branch[EXPLAIN_WIN];
    e->q = copy_row(e, &in[NSA_Q], e->kv_head * e->G, e->G);
    e->gate = copy_row(e, &in[NSA_GATE], e->kv_head * e->G, e->G);
    slc->k = copy_heads(e, &in[NSA_K_SLC], e->kv_head, 1);
    slc->v = copy_heads(e, &in[NSA_V_SLC], e->kv_head, 1);
    win->k = copy_heads(e, &in[NSA_K_WIN], e->kv_head, 1);
    win->v = copy_heads(e, &in[NSA_V_WIN], e->kv_head, 1);
    return e->q && e->gate && slc->k && slc->v && win->k && win->v ? NSA_OK : no_memory();
}

/* ------------------------------------------------------------ the stage's results */

/* One result, whole. */
static nsa_status read_result(explanation *e, nsa_context *ctx, nsa_id id, nsa_tensor *result) {
    nsa_status status = nsa_result(ctx, id, result);
    if (status)
        return status;
    result->data = explain_alloc(e, nsa_count(result), nsa_dtype_size(result->dtype));
    return result->data ? nsa_read(ctx, id, result) : no_memory();
}

/* All results of the row; every array begins at this group's first head. */
static nsa_status read_results(explanation *e, nsa_context *ctx) {
    static const nsa_id ids[] = {NSA_K_PHI,   NSA_V_PHI,   NSA_IMPORTANCE, NSA_BLOCK_IDX,
                                 NSA_OUT_CMP, NSA_OUT_SLC, NSA_OUT_WIN,    NSA_OUT};
    nsa_tensor got[NSA_ID_COUNT] = {0};
    const int64_t first = e->kv_head * e->G * e->input->cfg.v_dim;
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        nsa_status status = read_result(e, ctx, ids[i], &got[ids[i]]);
        if (status)
            return status;
    }
    e->N = got[NSA_K_PHI].shape[0];
    e->J = got[NSA_IMPORTANCE].shape[2];
    e->branch[EXPLAIN_CMP].k = copy_heads(e, &got[NSA_K_PHI], e->kv_head, 1);
    e->branch[EXPLAIN_CMP].v = copy_heads(e, &got[NSA_V_PHI], e->kv_head, 1);
    e->importance = (const double *)got[NSA_IMPORTANCE].data + e->kv_head * e->J;
    e->block_idx = (const int32_t *)got[NSA_BLOCK_IDX].data + e->kv_head * e->input->cfg.slc_count;
    for (int x = 0; x < EXPLAIN_BRANCHES; x++)
        e->branch[x].out = (const double *)got[NSA_OUT_CMP + x].data + first;
    e->out = (const double *)got[NSA_OUT].data + first;
    return e->branch[EXPLAIN_CMP].k && e->branch[EXPLAIN_CMP].v ? NSA_OK : no_memory();
}

/* The stage computes the query's row alone. */
static nsa_status run_row(explanation *e) {
    int32_t row = (int32_t)e->t;
    nsa_tensors in = e->input->in;
    nsa_setup setup = {.flags = NSA_WANT_BRANCHES | NSA_WANT_IMPORTANCE, .max_rows = 1};
    nsa_context *ctx = NULL;
    in.at[NSA_ROWS] = (nsa_tensor){.data = &row, .dtype = NSA_I32, .ndim = 1, .shape = {1}};
    in.at[NSA_DOUT] = (nsa_tensor){0};
    nsa_status status = nsa_open(e->stage->stage, &e->input->cfg, &setup, &ctx);
    status = status ? status : nsa_load(ctx, &in);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : read_results(e, ctx);
    nsa_close(ctx);
    return status;
}

/* --------------------------------------------------------------------- branches */

/* Is this compressed token (cmp) or position (slc, win) one that the query sees? */
static int sees(const explanation *e, int branch, int64_t key) {
    const nsa_config *c = &e->input->cfg;
    if (branch == EXPLAIN_CMP)
        return key * c->cmp_stride + c->cmp_block - 1 <= e->t;
    if (branch == EXPLAIN_WIN)
        return e->t - c->window < key && key <= e->t;
    for (int64_t i = 0; i < c->slc_count; i++) {
        if (e->block_idx[i] == key / c->slc_block)
            return key <= e->t;
    }
    return 0;
}

/* One head's softmax over the keys that the query sees. */
static void softmax(const explanation *e, explain_branch *b, int64_t g) {
    const nsa_config *c = &e->input->cfg;
    double *score = b->score + g * b->count, *weight = b->weight + g * b->count;
    b->row_max[g] = -INFINITY;
    for (int64_t i = 0; i < b->count; i++) {
        for (int64_t x = 0; x < c->qk_dim; x++)
            score[i] += e->q[g * c->qk_dim + x] * b->k[b->key[i] * c->qk_dim + x];
        b->row_max[g] = score[i] > b->row_max[g] ? score[i] : b->row_max[g];
    }
    for (int64_t i = 0; i < b->count; i++) {
        weight[i] = exp(c->scale * (score[i] - b->row_max[g]));
        b->row_sum[g] += weight[i];
    }
    for (int64_t i = 0; i < b->count; i++)
        b->p[g * b->count + i] = weight[i] / b->row_sum[g];
}

/* The keys of one branch, and the softmax of each head over them. */
static nsa_status compute_branch(explanation *e, int branch) {
    explain_branch *b = &e->branch[branch];
    const int64_t keys = branch == EXPLAIN_CMP ? e->N : e->T;
    b->key = explain_alloc(e, keys, sizeof *b->key);
    for (int64_t s = 0; b->key && s < keys; s++) {
        if (sees(e, branch, s))
            b->key[b->count++] = s;
    }
    b->score = explain_alloc(e, e->G * b->count, sizeof *b->score);
    b->weight = explain_alloc(e, e->G * b->count, sizeof *b->weight);
    b->p = explain_alloc(e, e->G * b->count, sizeof *b->p);
    b->row_max = explain_alloc(e, e->G, sizeof *b->row_max);
    b->row_sum = explain_alloc(e, e->G, sizeof *b->row_sum);
    if (!b->key || !b->score || !b->weight || !b->p || !b->row_max || !b->row_sum)
        return no_memory();
    for (int64_t g = 0; g < e->G; g++)
        softmax(e, b, g);
    return NSA_OK;
}

/* ------------------------------------------------------------------- selection */

int64_t explain_weight(const nsa_config *c, int64_t j, int64_t i) {
    const int64_t per_block = c->slc_block / c->cmp_stride, overlap = c->cmp_block / c->cmp_stride;
    const int64_t x = i - per_block * j; /* = m - r, with 0 <= m < l'/d and 0 <= r < l/d */
    const int64_t first = x < 0 ? -x : 0, end = per_block - x < overlap ? per_block - x : overlap;
    return end > first ? end - first : 0; /* how many r */
}

int explain_forced(const nsa_config *c, int64_t j, int64_t b) {
    return j < c->slc_init || j > b - c->slc_local;
}

/* Each head's part of the importance (Eq. 9). */
static nsa_status compute_importance(explanation *e) {
    const nsa_config *c = &e->input->cfg;
    const explain_branch *b = &e->branch[EXPLAIN_CMP];
    const int64_t per_block = c->slc_block / c->cmp_stride, overlap = c->cmp_block / c->cmp_stride;
    e->head_importance = explain_alloc(e, e->G * e->J, sizeof *e->head_importance);
    if (!e->head_importance)
        return no_memory();
    for (int64_t j = 0; j < e->J; j++) {
        /* only these overlap the block; those the query does not see count as zero */
        const int64_t begin = per_block * j - overlap + 1, end = per_block * (j + 1);
        for (int64_t i = begin > 0 ? begin : 0; i < end && i < b->count; i++) {
            const int64_t weight = explain_weight(c, j, i);
            for (int64_t g = 0; g < e->G; g++)
                e->head_importance[g * e->J + j] += (double)weight * b->p[g * b->count + i];
        }
    }
    return NSA_OK;
}

/* How many blocks of [0,b] come before block j in the order of selection: forced ones, then
 * importance descending, then index ascending; NaN sorts below every number. */
static int64_t rank_of(const explanation *e, int64_t j) {
    const nsa_config *c = &e->input->cfg;
    int64_t rank = 0;
    for (int64_t i = 0; i <= e->own_block; i++) {
        const double a = e->importance[i], b = e->importance[j];
        const int forced_i = explain_forced(c, i, e->own_block);
        const int forced_j = explain_forced(c, j, e->own_block);
        const int more = isnan(b) ? !isnan(a) : a > b;
        const int equal = isnan(b) ? isnan(a) : a == b;
        if (forced_i != forced_j)
            rank += forced_i;
        else
            rank += more || (equal && i < j);
    }
    return rank;
}

/* Is block j in the stage's list? */
static int selected(const explanation *e, int64_t j) {
    for (int64_t i = 0; i < e->input->cfg.slc_count; i++) {
        if (e->block_idx[i] == j)
            return 1;
    }
    return 0;
}

/* Should it be? By its rank, or by the list that the case gives. */
static int expected(const explanation *e, int64_t j) {
    const nsa_config *c = &e->input->cfg;
    const nsa_tensor *given = &e->input->in.at[NSA_BLOCK_IDX];
    if (!given->dtype)
        return rank_of(e, j) < c->slc_count;
    const int32_t *list = given->data;
    for (int64_t i = 0; i < c->slc_count; i++) {
        if (list[(e->t * c->kv_heads + e->kv_head) * c->slc_count + i] == j)
            return 1;
    }
    return 0;
}

/* ------------------------------------------------------------------ comparison */

/* The stage's number against ours: within the tolerance, or both NaN. */
static nsa_status agree(double stages, double ours, double size, const char *what, int64_t at) {
    if (fabs(stages - ours) <= TOLERANCE * size || stages == ours || (isnan(stages) && isnan(ours)))
        return NSA_OK;
    return nsa_fail(NSA_ERR_STATE,
                    "%s[%" PRId64 "] of the stage is %.17g, and by its definition %.17g", what, at,
                    stages, ours);
}

/* The largest magnitude among the values of a branch. */
static double largest(const explain_branch *b, int64_t dv) {
    double size = 0;
    for (int64_t i = 0; i < b->count * dv; i++)
        size = fmax(size, fabs(b->v[b->key[i / dv] * dv + i % dv]));
    return size;
}

/* Each branch's output is the sum of p v; the outputs times their gates are `out`. */
static nsa_status compare_outputs(const explanation *e) {
    const int64_t dv = e->input->cfg.v_dim;
    nsa_status status = NSA_OK;
    for (int64_t at = 0; at < e->G * dv && !status; at++) {
        double out = 0, size = 0;
        for (int x = 0; x < EXPLAIN_BRANCHES && !status; x++) {
            const explain_branch *b = &e->branch[x];
            double o = 0;
            for (int64_t i = 0; i < b->count; i++)
                o += b->p[at / dv * b->count + i] * b->v[b->key[i] * dv + at % dv];
            status = agree(b->out[at], o, largest(b, dv), nsa_name((nsa_id)(NSA_OUT_CMP + x)), at);
            out += e->gate[at / dv * EXPLAIN_BRANCHES + x] * b->out[at];
            size = fmax(size, largest(b, dv));
        }
        status = status ? status : agree(e->out[at], out, size, "out", at);
    }
    return status;
}

static nsa_status compare_selection(const explanation *e) {
    const nsa_config *c = &e->input->cfg;
    const int64_t overlap = c->cmp_block / c->cmp_stride; /* importances add up to at most G l/d */
    nsa_status status = NSA_OK;
    for (int64_t j = 0; j < e->J && !status; j++) {
        double sum = 0;
        for (int64_t g = 0; g < e->G; g++)
            sum += e->head_importance[g * e->J + j];
        status = agree(e->importance[j], sum, (double)(e->G * overlap), "importance", j);
    }
    for (int64_t j = 0; j <= e->own_block && !status; j++) {
        if (selected(e, j) != expected(e, j))
            status =
                nsa_fail(NSA_ERR_STATE, "block %" PRId64 " is %s by the stage, and by its %s %s", j,
                         selected(e, j) ? "selected" : "not selected",
                         e->input->in.at[NSA_BLOCK_IDX].dtype ? "list" : "importance",
                         expected(e, j) ? "selected" : "not selected");
    }
    return status;
}

nsa_status explain_query(explanation *e) {
    nsa_status status = check_query(e);
    if (status)
        return status;
    const nsa_config *c = &e->input->cfg;
    e->T = e->input->in.at[NSA_Q].shape[0];
    e->G = c->q_heads / c->kv_heads;
    e->own_block = e->t / c->slc_block;
    status = copy_inputs(e);
    status = status ? status : run_row(e);
    for (int x = 0; x < EXPLAIN_BRANCHES && !status; x++)
        status = compute_branch(e, x);
    status = status ? status : compute_importance(e);
    status = status ? status : compare_selection(e);
    return status ? status : compare_outputs(e);
}
