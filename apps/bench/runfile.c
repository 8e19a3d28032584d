/** @file runfile.c
 *  @brief Run files: a table of fields for each struct defines its JSON. */
#include "bench/bench.h"
#include "io/file.h"
#include "io/json.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    STATS(bench_run, "gflops", ceiling[CPU_SGEMM]) STATS(bench_run, "gbs", ceiling[CPU_COPY]) {0}};

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
    static const field none = {0};
    int ok = put(root, run_fields, run);
    cJSON *ceilings = ok ? cJSON_AddObjectToObject(root, "ceilings") : NULL;
    ok = put(ceilings, run->gpu[0] ? ceiling_fields : &none, run);
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
        return nsa_fail(NSA_ERR_INPUT,
                        "%s: \"rounds\" of %s at T = %" PRId64
                        " are not up to %d times in seconds, %" PRId64 " of them above 0",
                        path, row->name, row->T, BENCH_MAX_RUNS, row->runs);
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
    return status;
}
