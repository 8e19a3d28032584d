/** @file results.c
 *  @brief Run files: a table of fields for each struct defines their JSON. What is computed from
 * times: ratios, shares of the ceilings, noise. */
#include "bench/bench.h"
#include "io/file.h"
#include "io/json.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/* A field of one of the structs; SPREAD is bench_stats as [median, low, high]. */
typedef enum kind { TEXT, INTEGER, REAL, SPREAD } kind;

typedef struct field {
    const char *name;
    kind kind;
    size_t offset, size;
} field;

#define FIELD(type, kind, key, member)                                                             \
    {key, kind, offsetof(type, member), sizeof(((type *)0)->member)},
#define THREE(type, key, low_key, high_key, member)                                                \
    FIELD(type, REAL, key, member.median)                                                          \
    FIELD(type, REAL, low_key, member.low) FIELD(type, REAL, high_key, member.high)
#define STATS(type, key, member) THREE(type, key, key "_low", key "_high", member)
#define RUN(kind, name)          FIELD(bench_run, kind, #name, name)
#define ROW(kind, name)          FIELD(bench_row, kind, #name, name)
#define CEILING(key, which)      FIELD(bench_run, SPREAD, key, ceiling[which])

/* clang-format off */
static const field run_fields[] = {
    RUN(TEXT, cpu) RUN(TEXT, compiler) RUN(TEXT, flags) RUN(TEXT, own_flags) RUN(TEXT, blas)
    RUN(TEXT, peers) RUN(TEXT, gpu) RUN(TEXT, commit) RUN(TEXT, date) RUN(TEXT, workload)
    RUN(TEXT, noise) RUN(INTEGER, cores) RUN(INTEGER, threads) RUN(INTEGER, batch) RUN(REAL, load)
    RUN(INTEGER, rounds) RUN(INTEGER, kept) STATS(bench_run, "gflops", ceiling[CPU_SGEMM])
    STATS(bench_run, "gbs", ceiling[CPU_COPY]) {0}};

/* The GPU's, in an object of their own. */
static const field ceiling_fields[] = {
    CEILING("fma", BENCH_FMA) CEILING("sgemm", BENCH_SGEMM) CEILING("bf16", BENCH_BF16)
    CEILING("l2", BENCH_L2) CEILING("read", BENCH_READ) CEILING("copy", BENCH_COPY) {0}};

static const field row_fields[] = {
    ROW(TEXT, name) ROW(TEXT, pass) ROW(TEXT, device) ROW(TEXT, arith) ROW(INTEGER, T)
    ROW(TEXT, status) ROW(TEXT, checked) ROW(INTEGER, runs) ROW(INTEGER, memory)
    THREE(bench_row, "median", "q1", "q3", time) ROW(REAL, flops) ROW(REAL, bytes)
    ROW(REAL, tokens) ROW(REAL, bytes_io)
    THREE(bench_row, "with_io_median", "with_io_q1", "with_io_q3", with_io)
    ROW(TEXT, bound) ROW(REAL, gflops) ROW(REAL, gbs) ROW(REAL, share)
    STATS(bench_row, "below", below) STATS(bench_row, "dense", dense) {0}};

/* For each of these a row has an object of numbers, by phase name. */
static const field phase_fields[] = {
    FIELD(bench_phase, REAL, "phases", seconds) FIELD(bench_phase, REAL, "phase_flops", flops)
    FIELD(bench_phase, REAL, "phase_l2", l2) FIELD(bench_phase, REAL, "phase_bytes", bytes) {0}};
/* clang-format on */

/* These return NULL or 0 without memory. */
static cJSON *item_of(const void *from, const field *f) {
    const void *at = (const char *)from + f->offset;
    const bench_stats *s = at;
    if (f->kind == SPREAD)
        return cJSON_CreateDoubleArray((double[]){s->median, s->low, s->high}, 3);
    if (f->kind == TEXT)
        return cJSON_CreateString(at);
    return cJSON_CreateNumber(f->kind == REAL ? *(const double *)at : (double)*(const int64_t *)at);
}

static int put(cJSON *to, const field *f, const void *from) {
    int ok = to != NULL;
    for (; f->name && ok; f++)
        ok = cJSON_AddItemToObject(to, f->name, item_of(from, f));
    return ok;
}

/* Times to the nanosecond, and the phases. */
static int put_row(cJSON *item, const bench_row *r) {
    int ok = put(item, row_fields, r);
    cJSON *list = ok && r->rounds ? cJSON_AddArrayToObject(item, "rounds") : item;
    for (int i = 0; i < r->rounds && ok; i++)
        ok = cJSON_AddItemToArray(list, cJSON_CreateNumber(round(1e9 * r->round[i]) / 1e9));
    for (const field *f = phase_fields; f->name && ok; f++) {
        cJSON *object = cJSON_AddObjectToObject(item, f->name);
        ok = object != NULL;
        for (int p = 0; p < r->phases && ok; p++)
            ok = cJSON_AddItemToObject(object, r->phase[p].name, item_of(&r->phase[p], f));
    }
    return ok;
}

static int put_run(cJSON *root, const bench_run *run) {
    int ok = put(root, run_fields, run);
    cJSON *ceilings = ok ? cJSON_AddObjectToObject(root, "ceilings") : NULL;
    ok = ceilings && (!run->gpu[0] || put(ceilings, ceiling_fields, run));
    cJSON *rows = ok ? cJSON_AddArrayToObject(root, "rows") : NULL;
    ok = rows != NULL;
    for (int i = 0; i < run->rows && ok; i++) {
        cJSON *item = cJSON_CreateObject();
        ok = cJSON_AddItemToArray(rows, item) && put_row(item, &run->row[i]);
    }
    return ok;
}

nsa_status runfile_write(const bench_run *run, const char *path) {
    cJSON *root = cJSON_CreateObject();
    char *text = put_run(root, run) ? cJSON_Print(root) : NULL;
    nsa_status status = text ? file_replace(path, text)
                             : nsa_fail(NSA_ERR_MEMORY, "no memory for the run file %s", path);
    cJSON_free(text);
    cJSON_Delete(root);
    return status;
}

/* @return 0 if the item is of the wrong type */
static int set(void *to, const field *f, const cJSON *item) {
    void *at = (char *)to + f->offset;
    bench_stats *s = at;
    double *const three[] = {&s->median, &s->low, &s->high};
    if (f->kind == TEXT ? !cJSON_IsString(item) : f->kind != SPREAD && !cJSON_IsNumber(item))
        return 0;
    if (f->kind == TEXT)
        snprintf(at, f->size, "%s", item->valuestring);
    else if (f->kind == INTEGER)
        *(int64_t *)at = (int64_t)item->valuedouble;
    else if (f->kind == REAL)
        *(double *)at = item->valuedouble;
    for (int i = 0; i < 3 && f->kind == SPREAD; i++) {
        const cJSON *number = cJSON_GetArrayItem(item, i);
        *three[i] = cJSON_IsNumber(number) ? number->valuedouble : 0;
    }
    return 1;
}

/* A missing key gives zero; one of the wrong type is an error. */
static nsa_status get(const cJSON *from, const field *f, void *to, const char *path) {
    for (; f->name; f++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(from, f->name);
        if (item && !set(to, f, item))
            return nsa_fail(NSA_ERR_INPUT, "%s: \"%s\" is not a %s", path, f->name,
                            f->kind == TEXT ? "text" : "number");
    }
    return NSA_OK;
}

/* Older files have no rounds. */
static nsa_status get_rounds(const cJSON *item, bench_row *row, const char *path) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(item, "rounds"), *p;
    const int fits = cJSON_IsArray(list) && cJSON_GetArraySize(list) <= BENCH_MAX_RUNS;
    const cJSON *times = fits ? list : NULL;
    int64_t runs = 0;
    int bad = list && !fits;
    cJSON_ArrayForEach(p, times) {
        bad |= !cJSON_IsNumber(p) || !isfinite(p->valuedouble) || p->valuedouble < 0;
        runs += p->valuedouble > 0;
        row->round[row->rounds++] = p->valuedouble;
    }
    if (bad || (list && runs != row->runs))
        return nsa_fail(NSA_ERR_INPUT, "%s: \"rounds\" of %s at T = %" PRId64 " are not its times",
                        path, row->name, row->T);
    return NSA_OK;
}

static nsa_status get_row(const cJSON *item, bench_run *run, const char *path) {
    bench_row *row = &run->row[run->rows++];
    nsa_status status = get(item, row_fields, row, path);
    const cJSON *phases = cJSON_GetObjectItemCaseSensitive(item, "phases"), *p;
    status = status ? status : get_rounds(item, row, path);
    cJSON_ArrayForEach(p, phases) {
        if (row->phases == BENCH_MAX_PHASES || !cJSON_IsNumber(p))
            return nsa_fail(NSA_ERR_INPUT, "%s: row %d has bad phases", path, run->rows);
        bench_phase *phase = &row->phase[row->phases++];
        snprintf(phase->name, sizeof phase->name, "%s", p->string);
        for (const field *f = phase_fields; f->name; f++) {
            const cJSON *of = cJSON_GetObjectItemCaseSensitive(item, f->name);
            /* older files have only times */
            (void)set(phase, f, cJSON_GetObjectItemCaseSensitive(of, p->string));
        }
    }
    return status;
}

static nsa_status get_run(const cJSON *root, bench_run *run, const char *path) {
    const cJSON *rows = cJSON_GetObjectItemCaseSensitive(root, "rows"), *item;
    const cJSON *ceilings = cJSON_GetObjectItemCaseSensitive(root, "ceilings");
    if (!cJSON_IsObject(root))
        return nsa_fail(NSA_ERR_INPUT, "%s: not a JSON object", path);
    if (!cJSON_IsArray(rows) || cJSON_GetArraySize(rows) > BENCH_MAX_ROWS)
        return nsa_fail(NSA_ERR_INPUT, "%s: not a run file: expected an array rows", path);
    nsa_status status = get(root, run_fields, run, path);
    status = status ? status : get(ceilings, ceiling_fields, run, path);
    cJSON_ArrayForEach(item, rows) {
        if (!status)
            status = get_row(item, run, path);
    }
    return status;
}

nsa_status runfile_read(const char *path, bench_run *run) {
    enum { MAX_BYTES = 16 << 20 };
    char *text;
    size_t n;
    memset(run, 0, sizeof *run);
    nsa_status status = file_read(path, MAX_BYTES, &text, &n);
    status = status ? status : json_check(text, n, NSA_ERR_INPUT, path);
    cJSON *root = status ? NULL : cJSON_ParseWithLength(text, n);
    status = status ? status : get_run(root, run, path);
    cJSON_Delete(root);
    free(text);
    if (!status)
        bench_compute(run); /* by the rules of today, whatever those of the run were */
    return status;
}

/* --------------------------------------------- what is computed from times */

const bench_row *bench_find(const bench_run *run, const char *name, const char *pass, int64_t T) {
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (r->T == T && !r->status[0] && !strcmp(r->name, name) && !strcmp(r->pass, pass))
            return r;
    }
    return NULL;
}

static double spread(bench_stats s) {
    return s.median > 0 ? (s.high - s.low) / s.median : 0;
}

/* Times and shares need a quiet machine: quartiles within 20 %, and within 15 % the ceilings that
 * rows are compared with; without any row, those of the CPU. Ratios have their own spreads. */
static void set_noise(bench_run *run) {
    static const char *const names[BENCH_CEILINGS] = {
        "fma", "sgemm", "bf16", "l2", "read", "copy", "OpenBLAS sgemm", "copy bandwidth"};
    const bench_row *row = NULL;
    int ceiling = -1, timed[2] = {0, 0}, used = 0;
    for (const bench_row *r = run->row; r < run->row + run->rows; r++) {
        timed[!strcmp(r->device, "gpu")] |= !r->status[0];
        if (!r->status[0] && spread(r->time) > (row ? spread(row->time) : 0.2))
            row = r;
    }
    for (int i = 0; i < BENCH_CEILINGS; i++) {
        const int counts = i < GPU_CEILINGS ? timed[1] : timed[0] || !timed[1];
        if (counts &&
            spread(run->ceiling[i]) > (ceiling < 0 ? BENCH_APART : spread(run->ceiling[ceiling])))
            ceiling = i;
    }
    run->noise[0] = 0;
    if (ceiling >= 0)
        used = snprintf(run->noise, sizeof run->noise, "%s differed by %.0f %% within the run",
                        names[ceiling], 100 * spread(run->ceiling[ceiling]));
    if (row)
        snprintf(run->noise + used, sizeof run->noise - (size_t)used,
                 "%sthe quartiles of %s at T = %" PRId64 " differ by %.0f %%", used ? "; " : "",
                 row->name, row->T, 100 * spread(row->time));
}

bench_stats bench_ratio(const bench_row *r, const bench_row *than) {
    enum { MIN_SHARED = 3 };
    double ratio[BENCH_MAX_RUNS];
    int shared = 0;
    for (int i = 0; i < r->rounds && i < than->rounds; i++) {
        if (r->round[i] > 0 && than->round[i] > 0)
            ratio[shared++] = than->round[i] / r->round[i];
    }
    if (shared >= MIN_SHARED)
        return bench_quartiles(ratio, shared);
    return (bench_stats){than->time.low / r->time.high, than->time.median / r->time.median,
                         than->time.high / r->time.low};
}

/* The shortest time that the ceilings allow, over the time taken. */
static void set_share(const bench_run *run, bench_row *r) {
    const int half = !strcmp(r->arith, "bfloat16");
    const bench_stats *c = run->ceiling;
    double gflops = r->gflops > 0 ? r->gflops : c[CPU_SGEMM].median;
    double gbs = r->gbs > 0 ? r->gbs : c[CPU_COPY].median;
    if (!strcmp(r->device, "gpu")) {
        gflops = c[half ? BENCH_BF16 : BENCH_FMA].median;
        gbs = c[BENCH_READ].median;
    }
    const double flops = gflops > 0 ? r->flops / (1e9 * gflops) : 0;
    const double bytes = gbs > 0 ? r->bytes / (1e9 * gbs) : 0;
    snprintf(r->bound, sizeof r->bound, "%s", flops >= bytes ? "flops" : "bytes");
    r->share = gflops > 0 ? fmax(flops, bytes) / r->time.median : 0;
}

/* The dense attention of the ratio: OpenBLAS's, or without that, on a GPU and for a backward, the
 * fastest plain causal attention by a stage's own code; on a GPU, where stages differ in their
 * arithmetic, of a stage that has one its own. */
static const bench_row *dense_of(const bench_run *run, const bench_row *r) {
    const int on_device = strcmp(r->device, "cpu") != 0; /* a GPU, or the simulator */
    const bench_row *best =
        !strcmp(r->device, "gpu") ? NULL : bench_find(run, BENCH_DENSE, r->pass, r->T);
    for (int i = 0, own = !best; i < run->rows && own; i++) {
        const bench_row *d = &run->row[i];
        if (d->T != r->T || d->status[0] || strcmp(d->pass, r->pass) ||
            strcmp(d->device, r->device) || !bench_prefix(d->name, BENCH_OWN_DENSE))
            continue;
        if (on_device && (d == r || !strcmp(d->name + strlen(BENCH_OWN_DENSE), r->name)))
            return d;
        if (!best || d->time.median < best->time.median)
            best = d;
    }
    return best;
}

/* The nearest stage before this one, at the same pass and length on the same device. */
static const bench_row *below_of(const bench_run *run, int index) {
    const bench_row *r = &run->row[index];
    for (int i = index - 1; i >= 0; i--) {
        const bench_row *b = &run->row[i];
        if (b->T != r->T || strcmp(b->pass, r->pass))
            return NULL;
        if (!b->status[0] && bench_is_stage(b) && !strcmp(b->device, r->device))
            return b;
    }
    return NULL;
}

void bench_compute(bench_run *run) {
    for (int i = 0; i < run->rows; i++) {
        bench_row *r = &run->row[i];
        /* ceilings and dense attention use all threads: one is compared with its own stage alone */
        if (r->status[0] || bench_prefix(r->name, BENCH_ONE_THREAD))
            continue;
        set_share(run, r);
        const bench_row *dense = dense_of(run, r);
        const bench_row *below = bench_is_stage(r) ? below_of(run, i) : NULL;
        if (dense && dense != r)
            r->dense = bench_ratio(r, dense);
        if (below && dense != r)
            r->below = bench_ratio(r, below);
    }
    set_noise(run);
}
