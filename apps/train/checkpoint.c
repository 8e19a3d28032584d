/** @file checkpoint.c
 *  @brief Checkpoints: a header of numbers with names, the weights and the optimizer's means, and a
 * checksum of all that. Little-endian, as the machine has it. */
#include "io/file.h"
#include "io/npy.h"
#include "train/train.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SHAPES = 26, FIELDS = SHAPES + 15 };

static const char magic[16] = {
    'n', 's', 'a', '-', 't', 'r', 'a', 'i', 'n', ' ', '1', ' ', ' ', ' ', '0' + (char)sizeof(real),
    '\n'};

typedef struct header {
    char magic[16];
    double field[FIELDS];
} header;

/* First what the model is, then the optimizer, then the state. */
static const char *const names[FIELDS] = {
    "vocab",     "width",     "layers",     "mlp",       "smear",     "longest",  "turned",
    "rope_base", "phi_rate",  "attention",  "seq_len",   "q_heads",   "kv_heads", "qk_dim",
    "v_dim",     "cmp_block", "cmp_stride", "slc_block", "slc_count", "slc_init", "slc_local",
    "window",    "phi",       "phi_hidden", "scale",     "max_seqs",  "lr",       "beta1",
    "beta2",     "eps",       "decay",      "clip",      "last",      "warm",     "steps",
    "seed",      "step",      "pairs",      "average",   "good",      "first_95"};

enum { STEP = 36, PAIRS, AVERAGE, GOOD, FIRST_95 };

static header header_of(const checkpoint *c) {
    const model_config *m = &c->m->cfg;
    const nsa_config *n = &m->nsa;
    const adamw_config *o = c->opt;
    const double field[FIELDS] = {(double)m->vocab,
                                  (double)m->width,
                                  (double)m->layers,
                                  (double)m->mlp,
                                  (double)m->smear,
                                  (double)m->longest,
                                  (double)m->turned,
                                  m->rope_base,
                                  m->phi_rate,
                                  (double)m->kind,
                                  (double)n->seq_len,
                                  (double)n->q_heads,
                                  (double)n->kv_heads,
                                  (double)n->qk_dim,
                                  (double)n->v_dim,
                                  (double)n->cmp_block,
                                  (double)n->cmp_stride,
                                  (double)n->slc_block,
                                  (double)n->slc_count,
                                  (double)n->slc_init,
                                  (double)n->slc_local,
                                  (double)n->window,
                                  (double)n->phi,
                                  (double)n->phi_hidden,
                                  n->scale,
                                  (double)n->max_seqs,
                                  o->lr,
                                  o->beta[0],
                                  o->beta[1],
                                  o->eps,
                                  o->decay,
                                  o->clip,
                                  o->last,
                                  (double)o->warm,
                                  (double)o->steps,
                                  (double)c->seed,
                                  (double)c->state->step,
                                  (double)c->state->pairs,
                                  c->state->average,
                                  (double)c->state->good,
                                  (double)c->state->first_95};
    header h;
    memcpy(h.magic, magic, sizeof magic);
    memcpy(h.field, field, sizeof field);
    return h;
}

/* FNV-1a, eight bytes at a time, the last ones alone. */
static uint64_t checksum(const char *bytes, size_t n) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n;) {
        uint64_t word = 0;
        const size_t take = n - i < 8 ? n - i : 8;
        memcpy(&word, bytes + i, take);
        hash = (hash ^ word) * 0x100000001B3u;
        i += take;
    }
    return hash;
}

static size_t size_of(const checkpoint *c) {
    return sizeof(header) + 3 * sizeof(real) * (size_t)model_count(c->m) + sizeof(uint64_t);
}

/* Copy all weights and means between the model and a file's bytes. */
static void copy_params(const model *m, char *bytes, int to_model) {
    for (int i = 0; i < m->params; i++) {
        const param *p = &m->param[i];
        const int64_t n = param_count(p) * (int64_t)sizeof(real);
        real *const part[] = {p->value, p->mean, p->square};
        for (int j = 0; j < 3; j++, bytes += n) {
            if (to_model)
                memory_write(part[j], bytes, n);
            else
                memory_read(bytes, part[j], n);
        }
    }
}

/* ------------------------------------------------------------------ writing */

static int put(const char *part, const char *bytes, size_t n) {
    FILE *f = fopen(part, "wb");
    if (!f)
        return -1;
    int bad = fwrite(bytes, 1, n, f) != n || fflush(f) || fsync(fileno(f));
    const int why = errno;
    bad |= fclose(f) != 0;
    errno = why ? why : errno;
    return bad ? -1 : 0;
}

nsa_status checkpoint_write(const char *path, const checkpoint *c) {
    char part[4096];
    const int length = snprintf(part, sizeof part, "%s.part", path);
    if (length < 0 || (size_t)length >= sizeof part)
        return nsa_fail(NSA_ERR_IO, "%.100s...: the name is too long", path);
    const size_t n = size_of(c);
    char *bytes = malloc(n);
    if (!bytes)
        return nsa_fail(NSA_ERR_MEMORY, "%s: no memory to write it", npy_label(path));
    const header h = header_of(c);
    memcpy(bytes, &h, sizeof h);
    copy_params(c->m, bytes + sizeof h, 0);
    const uint64_t sum = checksum(bytes, n - sizeof sum);
    memcpy(bytes + n - sizeof sum, &sum, sizeof sum);
    errno = 0;
    const int bad = put(part, bytes, n) || rename(part, path);
    free(bytes);
    if (!bad)
        return NSA_OK;
    const nsa_status status =
        nsa_fail(NSA_ERR_IO, "%s: cannot write it: %s", npy_label(path), strerror(errno));
    remove(part);
    return status;
}

/* ------------------------------------------------------------------ reading */

/* Does the header belong to this run? */
static nsa_status check_header(const char *label, const header *h, const checkpoint *c) {
    const header own = header_of(c);
    const double *f = h->field;
    if (memcmp(h->magic, magic, 14))
        return nsa_fail(NSA_ERR_INPUT, "%s: not a checkpoint of nsa train", label);
    if (h->magic[14] != magic[14])
        return nsa_fail(NSA_ERR_INPUT, "%s: numbers of %c bytes, expected %c", label,
                        h->magic[14] == '8' ? '8' : '?', magic[14]);
    for (int i = 0; i < STEP; i++) {
        if (f[i] != own.field[i])
            return nsa_fail(NSA_ERR_INPUT, "%s: %s is %g, in this run %g", label, names[i], f[i],
                            own.field[i]);
    }
    for (int i = STEP; i < FIELDS; i++) {
        const double most = i == PAIRS ? RECALL_PAIRS : i == AVERAGE ? 1 : (double)c->opt->steps;
        if (!(f[i] >= 0 && f[i] <= most) || (i != AVERAGE && f[i] != floor(f[i])))
            return nsa_fail(NSA_ERR_INPUT, "%s: %s is %g, expected a %snumber up to %g", label,
                            names[i], f[i], i == AVERAGE ? "" : "whole ", most);
    }
    if (f[PAIRS] < 2 || ((int)f[PAIRS] & ((int)f[PAIRS] - 1)))
        return nsa_fail(NSA_ERR_INPUT, "%s: pairs is %g, expected a power of two", label, f[PAIRS]);
    return NSA_OK;
}

static nsa_status check_bytes(const char *label, const char *bytes, size_t n, const checkpoint *c) {
    const size_t want = size_of(c);
    uint64_t sum;
    header h;
    if (n < sizeof h)
        return nsa_fail(NSA_ERR_INPUT, "%s: %zu bytes are no checkpoint", label, n);
    memcpy(&h, bytes, sizeof h);
    nsa_status status = check_header(label, &h, c);
    if (status)
        return status;
    if (n != want)
        return nsa_fail(NSA_ERR_INPUT, "%s: %s %zu bytes, expected %zu", label,
                        n < want ? "cut: it has" : "it has more than", n < want ? n : want, want);
    memcpy(&sum, bytes + n - sizeof sum, sizeof sum);
    if (sum != checksum(bytes, n - sizeof sum))
        return nsa_fail(NSA_ERR_INPUT, "%s: damaged: its checksum is another", label);
    for (size_t at = sizeof h; at + sizeof sum < n; at += sizeof(real)) {
        real x;
        memcpy(&x, bytes + at, sizeof x);
        if (!isfinite(x))
            return nsa_fail(NSA_ERR_INPUT, "%s: number %zu of its weights is not finite", label,
                            (at - sizeof h) / sizeof x);
    }
    return NSA_OK;
}

nsa_status checkpoint_read(const char *path, const checkpoint *c) {
    char *bytes;
    size_t n;
    header h;
    nsa_status status = file_read(path, size_of(c) + 1, &bytes, &n); /* one more shows too many */
    status = status ? status : check_bytes(npy_label(path), bytes, n, c);
    if (!status) {
        memcpy(&h, bytes, sizeof h);
        copy_params(c->m, bytes + sizeof h, 1);
        *c->state = (train_state){.step = (int64_t)h.field[STEP],
                                  .pairs = (int64_t)h.field[PAIRS],
                                  .average = h.field[AVERAGE],
                                  .good = (int64_t)h.field[GOOD],
                                  .first_95 = (int64_t)h.field[FIRST_95]};
    }
    free(bytes);
    return status;
}
