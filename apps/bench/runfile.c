/** @file runfile.c
 *  @brief Run files: a table of fields for each struct defines its JSON. */
#include "bench/bench.h"
#include "io/file.h"
#include "io/json.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A field of one of the structs. */
typedef enum kind { TEXT, INTEGER, REAL } kind;

typedef struct field {
    const char *name;
    kind kind;
    size_t offset, size;
} field;

#define FIELD(type, kind, key, member)                                                             \
    {key, kind, offsetof(type, member), sizeof(((type *)0)->member)},
#define STATS(type, key, member)                                                                   \
    FIELD(type, REAL, key, member.median)                                                          \
    FIELD(type, REAL, key "_low", member.low) FIELD(type, REAL, key "_high", member.high)
#define RUN_TEXT(name)    FIELD(bench_run, TEXT, #name, name)
#define RUN_INTEGER(name) FIELD(bench_run, INTEGER, #name, name)
#define ROW_TEXT(name)    FIELD(bench_row, TEXT, #name, name)
#define ROW_INTEGER(name) FIELD(bench_row, INTEGER, #name, name)
#define ROW_REAL(name)    FIELD(bench_row, REAL, #name, name)

/* clang-format off */
static const field run_fields[] = {
    RUN_TEXT(cpu) RUN_TEXT(compiler) RUN_TEXT(flags) RUN_TEXT(own_flags) RUN_TEXT(blas)
    RUN_TEXT(peers) RUN_TEXT(gpu) RUN_TEXT(commit) RUN_TEXT(date) RUN_TEXT(workload)
    RUN_TEXT(noise) RUN_INTEGER(cores) RUN_INTEGER(threads) RUN_INTEGER(batch)
    FIELD(bench_run, REAL, "load", load) STATS(bench_run, "gflops", ceiling[CPU_SGEMM])
    STATS(bench_run, "gbs", ceiling[CPU_COPY]) {0}};

static const field row_fields[] = {
    ROW_TEXT(name) ROW_TEXT(pass) ROW_TEXT(device) ROW_TEXT(arith) ROW_INTEGER(T)
    ROW_TEXT(status) ROW_TEXT(checked) ROW_INTEGER(runs) ROW_INTEGER(memory)
    FIELD(bench_row, REAL, "median", time.median) FIELD(bench_row, REAL, "q1", time.low)
    FIELD(bench_row, REAL, "q3", time.high) ROW_REAL(flops) ROW_REAL(bytes) ROW_REAL(tokens)
    FIELD(bench_row, REAL, "with_io_median", with_io.median) ROW_REAL(bytes_io)
    FIELD(bench_row, REAL, "with_io_q1", with_io.low)
    FIELD(bench_row, REAL, "with_io_q3", with_io.high)
    ROW_TEXT(bound) ROW_REAL(gflops) ROW_REAL(gbs) ROW_REAL(share)
    STATS(bench_row, "below", below) STATS(bench_row, "dense", dense) {0}};

/* For each of these a row has an object of numbers, by phase name. */
static const field phase_fields[] = {
    FIELD(bench_phase, REAL, "phases", seconds) FIELD(bench_phase, REAL, "phase_flops", flops)
    FIELD(bench_phase, REAL, "phase_l2", l2) FIELD(bench_phase, REAL, "phase_bytes", bytes) {0}};
/* clang-format on */

static double number_at(const void *from, const field *f) {
    const void *at = (const char *)from + f->offset;
    return f->kind == INTEGER ? (double)*(const int64_t *)at : *(const double *)at;
}

/* These return 0 without memory. */
static int put(cJSON *to, const field *f, const void *from) {
    int ok = to != NULL;
    for (; f->name && ok; f++)
        ok = (f->kind == TEXT ? cJSON_AddStringToObject(to, f->name, (const char *)from + f->offset)
                              : cJSON_AddNumberToObject(to, f->name, number_at(from, f))) != NULL;
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
            ok = cJSON_AddNumberToObject(object, r->phase[p].name, number_at(&r->phase[p], f)) !=
                 NULL;
    }
    return ok;
}

/* The GPU's ceilings, each [median, lowest, highest]. */
static int put_ceilings(cJSON *root, const bench_run *run) {
    cJSON *object = cJSON_AddObjectToObject(root, "ceilings");
    int ok = object != NULL;
    for (int i = 0; i < GPU_CEILINGS && ok && run->gpu[0]; i++) {
        const double three[] = {run->ceiling[i].median, run->ceiling[i].low, run->ceiling[i].high};
        ok = cJSON_AddItemToObject(object, ceiling_names[i], cJSON_CreateDoubleArray(three, 3));
    }
    return ok;
}

static int put_run(cJSON *root, const bench_run *run) {
    int ok = put(root, run_fields, run) && put_ceilings(root, run);
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

/* A missing key gives zero; one of the wrong type is an error. */
static nsa_status get(const cJSON *from, const field *f, void *to, const char *path) {
    for (; f->name; f++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(from, f->name);
        char *dst = (char *)to + f->offset;
        if (!item)
            continue;
        if (f->kind == TEXT ? !cJSON_IsString(item) : !cJSON_IsNumber(item))
            return nsa_fail(NSA_ERR_INPUT, "%s: \"%s\" is not a %s", path, f->name,
                            f->kind == TEXT ? "text" : "number");
        int64_t whole = (int64_t)item->valuedouble;
        if (f->kind == TEXT)
            snprintf(dst, f->size, "%s", item->valuestring);
        else
            memcpy(dst, f->kind == INTEGER ? (const void *)&whole : &item->valuedouble, f->size);
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
            const cJSON *number = cJSON_GetObjectItemCaseSensitive(of, p->string);
            if (cJSON_IsNumber(number)) /* older files have only times */
                memcpy((char *)phase + f->offset, &number->valuedouble, sizeof(double));
        }
    }
    return status;
}

static void get_ceilings(const cJSON *root, bench_run *run) {
    const cJSON *object = cJSON_GetObjectItemCaseSensitive(root, "ceilings");
    for (int i = 0; i < GPU_CEILINGS; i++) {
        const cJSON *three = cJSON_GetObjectItemCaseSensitive(object, ceiling_names[i]);
        double *const to[] = {&run->ceiling[i].median, &run->ceiling[i].low, &run->ceiling[i].high};
        for (int j = 0; j < 3; j++) {
            const cJSON *item = cJSON_GetArrayItem(three, j);
            *to[j] = cJSON_IsNumber(item) ? item->valuedouble : 0;
        }
    }
}

static nsa_status get_run(const cJSON *root, bench_run *run, const char *path) {
    const cJSON *rows = cJSON_GetObjectItemCaseSensitive(root, "rows"), *item;
    if (!cJSON_IsObject(root))
        return nsa_fail(NSA_ERR_INPUT, "%s: not a JSON object", path);
    if (!cJSON_IsArray(rows) || cJSON_GetArraySize(rows) > BENCH_MAX_ROWS)
        return nsa_fail(NSA_ERR_INPUT, "%s: not a run file: expected an array rows", path);
    nsa_status status = get(root, run_fields, run, path);
    get_ceilings(root, run);
    cJSON_ArrayForEach(item, rows) {
        if (!status)
            status = get_row(item, run, path);
    }
    return status;
}

nsa_status runfile_read(const char *path, bench_run *run) {
    enum { MAX_BYTES = 16 << 20 };
    memset(run, 0, sizeof *run);
    FILE *f;
    nsa_status status = file_stream(path, &f);
    char *text = malloc(MAX_BYTES);
    size_t n = f && text ? fread(text, 1, MAX_BYTES, f) : 0;
    if (f && ferror(f))
        status = nsa_fail(NSA_ERR_IO, "%s: %s", path, strerror(errno));
    if (f)
        fclose(f);
    if (!status && !text)
        status = nsa_fail(NSA_ERR_MEMORY, "%s: no memory for it", path);
    status = status ? status : json_check(text, n, NSA_ERR_INPUT, path);
    cJSON *root = status ? NULL : cJSON_ParseWithLength(text, n);
    status = status ? status : get_run(root, run, path);
    cJSON_Delete(root);
    free(text);
    return status;
}
