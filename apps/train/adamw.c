/** @file adamw.c
 *  @brief AdamW: the schedule and the global norm; layers.h has the update of one parameter. */
#include "train/adamw.h"

#include <math.h>

static const double PI = 3.14159265358979323846;

double adamw_rate(const adamw_config *c, int64_t step) {
    if (step < c->warm)
        return c->lr * (double)(step + 1) / (double)c->warm;
    const double done = (double)(step - c->warm) / (double)(c->steps - c->warm);
    return c->lr * (c->last + (1 - c->last) * (1 + cos(PI * done)) / 2);
}

double adamw_norm(const model *m) {
    double squares = 0;
    for (int i = 0; i < m->params; i++)
        squares += grad_squares(&m->param[i]);
    return sqrt(squares);
}

void adamw_apply(model *m, const adamw_config *c, double norm, int64_t step) {
    const adamw_step s = {
        .lr = adamw_rate(c, step),
        .clip = norm > c->clip ? c->clip / norm : 1,
        .beta = {c->beta[0], c->beta[1]},
        .eps = c->eps,
        .decay = c->decay,
        .bias = {1 - pow(c->beta[0], (double)step + 1), 1 - pow(c->beta[1], (double)step + 1)}};
    for (int i = 0; i < m->params; i++)
        adamw_update(&m->param[i], &s);
}
