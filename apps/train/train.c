/** @file train.c
 *  @brief The loop of a training on recall: batch, gradients, AdamW, curriculum, evaluation. */
#include "train/train.h"
#include "io/npy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EVERY = 50, QUICK = 2, LONG = 8, RANDOM = 4 /* evaluations: steps between, batches */ };

/* One training while it runs. */
typedef struct training {
    const train_options *o;
    model *m;
    adamw_config opt;
    train_state state;
    recall_batch *r;
    int64_t saved; /* the step of the last checkpoint; -1: none */
    int due;       /* 1: a checkpoint is due, when the loss of its weights is known to be finite */
    struct timespec began;
} training;

static double seconds(const training *t) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - t->began.tv_sec) + 1e-9 * (double)(now.tv_nsec - t->began.tv_nsec);
}

static nsa_status save(training *t) {
    if (!t->o->checkpoint)
        return NSA_OK;
    const checkpoint c = {t->m, &t->opt, t->o->seed, &t->state};
    nsa_status status = checkpoint_write(t->o->checkpoint, &c);
    t->saved = status ? t->saved : t->state.step;
    t->due = 0;
    return status;
}

/* A training that starts must not replace what another one has learned. */
static nsa_status check_free(const train_options *o) {
    const int resumes = o->resume && o->checkpoint && !strcmp(o->resume, o->checkpoint);
    if (!o->checkpoint || resumes || access(o->checkpoint, F_OK))
        return NSA_OK;
    return nsa_fail(NSA_ERR_IO, "%s: there already; --resume goes on from it",
                    npy_label(o->checkpoint));
}

/* Stop with the step, the layer and the last good checkpoint. */
static nsa_status not_finite(const training *t, const char *what) {
    char where[80], good[400] = "no checkpoint was written";
    model_first_nonfinite(t->m, !strcmp(what, "gradient"), where, sizeof where);
    if (t->saved >= 0)
        snprintf(good, sizeof good, "the last good checkpoint is %.300s of step %d",
                 t->o->checkpoint, (int)t->saved);
    return nsa_fail(NSA_ERR_STATE, "step %d: the %s is not finite, first in %s; %s",
                    (int)t->state.step, what, where, good);
}

/* The pairs are doubled when the moving average of the accuracy passes 0.7. */
static void curriculum(train_state *s, double accuracy) {
    if (s->step % 5)
        return;
    s->average += 0.2 * (accuracy - s->average);
    if (s->average > 0.7 && s->pairs < RECALL_PAIRS) {
        s->pairs *= 2;
        s->average = 0;
    }
}

static nsa_status step(training *t, train_result *result) {
    train_state *s = &t->state;
    loss_result loss = {0};
    const uint64_t seed = (uint64_t)t->o->seed;
    const batch b = recall_draw(t->r, s->pairs, recall_seed(seed, RECALL_TRAIN, s->step));
    t->m->block_seed = recall_seed(seed, RECALL_BLOCKS, s->step);
    nsa_status status = model_forward(t->m, &b, &loss);
    if (status == NSA_ERR_INPUT || !isfinite(loss.loss)) /* the stage refuses a gate of NaN */
        return not_finite(t, "loss");
    status = status ? status : model_backward(t->m);
    if (status)
        return status;
    const double norm = adamw_norm(t->m);
    if (!isfinite(norm))
        return not_finite(t, "gradient");
    if (t->due && (status = save(t)))
        return status;
    adamw_apply(t->m, &t->opt, norm, s->step++);
    result->loss = loss.loss;
    result->accuracy = (double)loss.correct / (double)loss.counted;
    curriculum(s, result->accuracy);
    return NSA_OK;
}

static nsa_status evaluate_on(const training *t, int batches, int random, recall_score *score) {
    const nsa_status status = recall_evaluate(t->m, batches, random, score);
    if (status == NSA_ERR_INPUT || !isfinite(score->loss))
        return not_finite(t, "loss of an evaluation");
    return status;
}

static nsa_status evaluate(training *t, const train_result *result) {
    train_state *s = &t->state;
    recall_score score;
    nsa_status status = evaluate_on(t, QUICK, 0, &score);
    if (status)
        return status;
    s->good = score.accuracy >= 0.99 ? s->good + 1 : 0;
    if (score.accuracy >= 0.95 && !s->first_95)
        s->first_95 = s->step;
    printf("%6d %6d %8.4f %9.3f %9.3f", (int)s->step, (int)s->pairs, result->loss, result->accuracy,
           score.accuracy);
    if (t->m->cfg.kind == ATTENTION_NSA || t->m->cfg.kind == ATTENTION_RANDOM)
        printf(" %9.3f", score.selected);
    else
        printf(" %9s", "-");
    printf(" %7.1f\n", seconds(t));
    fflush(stdout);
    return NSA_OK;
}

/* Until the end of the schedule, the step to stop after, or two good evaluations in a row. A first
 * checkpoint shows at once whether its file can be written. */
static nsa_status run(training *t, train_result *result) {
    const int64_t stop = t->o->stop && t->o->stop < t->opt.steps ? t->o->stop : t->opt.steps;
    nsa_status status = save(t);
    while (!status && t->state.step < stop && t->state.good < 2) {
        status = step(t, result);
        if (!status && (t->state.step % EVERY == 0 || t->state.step == t->opt.steps))
            status = evaluate(t, result);
        t->due |= t->state.step % t->o->every == 0;
    }
    return status;
}

static nsa_status finish(training *t, train_result *result) {
    recall_score random = {0};
    nsa_status status = evaluate_on(t, LONG, 0, &result->score);
    if (!status && t->o->kind == ATTENTION_NSA)
        status = evaluate_on(t, RANDOM, 1, &random);
    result->with_random = random.accuracy;
    result->state = t->state;
    result->seconds = seconds(t);
    return status ? status : save(t);
}

static void print_head(const training *t) {
    const train_options *o = t->o;
    const int has_phi = o->kind != ATTENTION_FULL && o->kind != ATTENTION_WINDOW;
    printf("recall: %d pairs in %d tokens, %d sequences a batch\n", RECALL_PAIRS, RECALL_T,
           RECALL_B);
    printf("attention %s%s%s by stage %s, %d parameters, products by %s, %d thread%s\n",
           attention_name(o->kind), has_phi ? ", phi " : "", has_phi ? nsa_phi_name(o->phi) : "",
           o->stage_name, (int)model_count(t->m), layers_name(), (int)o->threads,
           o->threads == 1 ? "" : "s");
    printf("one context a layer, %.1f MiB\n\n", (double)model_context_bytes(t->m) / 1048576);
    printf("%6s %6s %8s %9s %9s %9s %7s\n", "step", "pairs", "loss", "training", "32 pairs",
           "selected", "s");
    fflush(stdout);
}

nsa_status train_recall(const train_options *o, train_result *result) {
    model_config cfg;
    training t = {.o = o, .m = calloc(1, sizeof *t.m), .saved = -1};
    t.r = malloc(sizeof *t.r);
    t.state.pairs = 2;
    memset(result, 0, sizeof *result);
    recall_config(o->kind, o->phi, &cfg, &t.opt);
    t.opt.steps = o->steps;
    t.opt.lr = o->lr > 0 ? o->lr : t.opt.lr;
    clock_gettime(CLOCK_MONOTONIC, &t.began);
    nsa_status status = check_free(o);
    if (!t.m || !t.r)
        status = nsa_fail(NSA_ERR_MEMORY, "no memory for a training");
    else if (!status)
        status = model_open(t.m, &cfg, o->stage, (int)o->threads);
    if (!status) {
        model_start(t.m, (uint64_t)o->seed);
        t.m->blocks = o->kind == ATTENTION_RANDOM ? BLOCKS_RANDOM : BLOCKS_SELECTED;
        if (o->resume) {
            const checkpoint c = {t.m, &t.opt, o->seed, &t.state};
            status = checkpoint_read(o->resume, &c);
        }
    }
    if (!status) {
        print_head(&t);
        status = run(&t, result);
        status = status ? status : finish(&t, result);
        result->parameters = model_count(t.m);
    }
    if (t.m)
        model_close(t.m);
    free(t.m);
    free(t.r);
    return status;
}
