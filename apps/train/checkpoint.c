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

/* The numbers of the header: what the model is, the optimizer, the seed; then, from `step` on,
 * where the training stands. */
#define HEADER(X)                                                                                  \
    X(m->vocab), X(m->width), X(m->layers), X(m->mlp), X(m->smear), X(m->longest), X(m->turned),   \
        X(m->rope_base), X(m->phi_rate), X(m->kind), X(n->seq_len), X(n->q_heads), X(n->kv_heads), \
        X(n->qk_dim), X(n->v_dim), X(n->cmp_block), X(n->cmp_stride), X(n->slc_block),             \
        X(n->slc_count), X(n->slc_init), X(n->slc_local), X(n->window), X(n->phi),                 \
        X(n->phi_hidden), X(n->scale), X(n->max_seqs), X(o->lr), X(o->beta[0]), X(o->beta[1]),     \
        X(o->eps), X(o->decay), X(o->clip), X(o->last), X(o->warm), X(o->steps), X(c->seed),       \
        X(s->step), X(s->pairs), X(s->average), X(s->good), X(s->first_95)
#define NAME(member)  #member
#define VALUE(member) (double)(member)

static const char *const names[] = {HEADER(NAME)};
enum { FIELDS = sizeof names / sizeof *names, STEP = FIELDS - 5, PAIRS, AVERAGE, GOOD, FIRST_95 };

enum { MAGIC = 16, TYPE = 12 /* where the magic names the type of the weights */ };
#ifdef TRAIN_DOUBLE
static const char magic[] = "nsa-train 1 f64\n";
#else
static const char magic[] = "nsa-train 1 f32\n";
#endif

typedef struct header {
    char magic[MAGIC];
    double field[FIELDS];
} header;

static header header_of(const checkpoint *c) {
    const model_config *m = &c->m->cfg;
    const nsa_config *n = &m->nsa;
    const adamw_config *o = c->opt;
    const train_state *s = c->state;
    const double field[FIELDS] = {HEADER(VALUE)};
    header h;
    memcpy(h.magic, magic, MAGIC);
    memcpy(h.field, field, sizeof field);
    return h;
}

static const char *name_of(int field) {
    return strchr(names[field], '>') + 1;
}

/* FNV-1a, of a file whose length is a multiple of 4. */
static uint64_t checksum(const char *bytes, size_t n) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i += 4) {
        uint32_t word;
        memcpy(&word, bytes + i, 4);
        hash = (hash ^ word) * 0x100000001B3u;
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
    if (memcmp(h->magic, magic, TYPE))
        return nsa_fail(NSA_ERR_INPUT, "%s: not a checkpoint of nsa train", label);
    if (memcmp(h->magic, magic, MAGIC))
        return nsa_fail(NSA_ERR_INPUT, "%s: its weights are %.3s, expected %.3s", label,
                        h->magic + TYPE, magic + TYPE);
    for (int i = 0; i < STEP; i++) {
        if (f[i] != own.field[i])
            return nsa_fail(NSA_ERR_INPUT, "%s: %s is %g, in this run %g", label, name_of(i), f[i],
                            own.field[i]);
    }
    for (int i = STEP; i < FIELDS; i++) {
        const double most = i == PAIRS ? RECALL_PAIRS : i == AVERAGE ? 1 : (double)c->opt->steps;
        if (!(f[i] >= 0 && f[i] <= most) || (i != AVERAGE && f[i] != floor(f[i])))
            return nsa_fail(NSA_ERR_INPUT, "%s: %s is %g, expected a %snumber up to %g", label,
                            name_of(i), f[i], i == AVERAGE ? "" : "whole ", most);
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
