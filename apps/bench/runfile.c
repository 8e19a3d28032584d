/** @file runfile.c
 *  @brief Run files. A table of fields for each struct defines its JSON and CSV. */
#include "bench/runfile.h"
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

#define FIELD(type, kind, name)                                                                    \
    { #name, kind, offsetof(type, name), sizeof(((type *)0)->name) }
#define RUN_TEXT(name) FIELD(bench_run, TEXT, name)
#define RUN_REAL(name) FIELD(bench_run, REAL, name)
#define ROW_TEXT(name) FIELD(bench_row, TEXT, name)
#define ROW_REAL(name) FIELD(bench_row, REAL, name)
#define FIT_TEXT(name) FIELD(bench_fit, TEXT, name)
#define FIT_REAL(name) FIELD(bench_fit, REAL, name)

static const field run_fields[] = {RUN_TEXT(cpu),
                                   FIELD(bench_run, INTEGER, cores),
                                   RUN_REAL(load),
                                   RUN_TEXT(compiler),
                                   RUN_TEXT(flags),
                                   RUN_TEXT(own_flags),
                                   RUN_TEXT(blas),
                                   RUN_TEXT(peers),
                                   RUN_TEXT(gpu),
                                   RUN_TEXT(commit),
                                   RUN_TEXT(date),
                                   RUN_TEXT(workload),
                                   FIELD(bench_run, INTEGER, threads),
                                   FIELD(bench_run, INTEGER, batch),
                                   RUN_TEXT(noise),
                                   RUN_REAL(gflops),
                                   RUN_REAL(gflops_low),
                                   RUN_REAL(gflops_high),
                                   RUN_REAL(gbs),
                                   RUN_REAL(gbs_low),
                                   RUN_REAL(gbs_high),
                                   {0}};

static const field row_fields[] = {ROW_TEXT(name),
                                   ROW_TEXT(pass),
                                   ROW_TEXT(device),
                                   ROW_TEXT(arith),
                                   FIELD(bench_row, INTEGER, T),
                                   ROW_TEXT(status),
                                   ROW_TEXT(checked),
                                   FIELD(bench_row, INTEGER, runs),
                                   ROW_REAL(median),
                                   ROW_REAL(q1),
                                   ROW_REAL(q3),
                                   FIELD(bench_row, INTEGER, memory),
                                   ROW_REAL(flops),
                                   ROW_REAL(bytes),
                                   ROW_REAL(tokens),
                                   ROW_TEXT(bound),
                                   ROW_REAL(gflops),
                                   ROW_REAL(gbs),
                                   ROW_REAL(share),
                                   ROW_TEXT(below_name),
                                   ROW_REAL(below),
                                   ROW_REAL(below_low),
                                   ROW_REAL(below_high),
                                   ROW_REAL(dense),
                                   ROW_REAL(dense_low),
                                   ROW_REAL(dense_high),
                                   {0}};

static const field fit_fields[] = {FIT_TEXT(name),
                                   FIT_TEXT(pass),
                                   FIT_TEXT(phase),
                                   FIT_TEXT(against),
                                   FIELD(bench_fit, INTEGER, from),
                                   FIELD(bench_fit, INTEGER, to),
                                   FIELD(bench_fit, INTEGER, points),
                                   FIELD(bench_fit, INTEGER, slower),
                                   FIELD(bench_fit, INTEGER, faster),
                                   FIT_REAL(a),
                                   FIT_REAL(b),
                                   FIT_REAL(residual),
                                   FIT_REAL(curved),
                                   FIT_REAL(by_flops),
                                   FIT_REAL(crosses),
                                   {0}};

static const char *const ceiling_names[BENCH_CEILINGS] = {"fma", "sgemm", "bf16",
                                                          "l2",  "read",  "copy"};

static int64_t int_at(const void *from, const field *f) {
    int64_t value;
    memcpy(&value, (const char *)from + f->offset, sizeof value);
    return value;
}

static double real_at(const void *from, const field *f) {
    double value;
    memcpy(&value, (const char *)from + f->offset, sizeof value);
    return value;
}

/* ----------------------------------------------------------------- writing */

static int put(cJSON *to, const field *f, const void *from) {
    for (; f->name; f++) {
        const cJSON *added =
            f->kind == TEXT ? cJSON_AddStringToObject(to, f->name, (const char *)from + f->offset)
            : f->kind == INTEGER ? cJSON_AddNumberToObject(to, f->name, (double)int_at(from, f))
                                 : cJSON_AddNumberToObject(to, f->name, real_at(from, f));
        if (!added)
            return 0;
    }
    return 1;
}

/* Add an object with the fields of `from` to an array; NULL without memory. */
static cJSON *put_item(cJSON *array, const field *f, const void *from) {
    cJSON *item = array ? cJSON_CreateObject() : NULL;
    if (item && put(item, f, from) && cJSON_AddItemToArray(array, item))
        return item;
    cJSON_Delete(item);
    return NULL;
}

/* For each of these a row has an object of numbers, by phase name. */
static const field phase_fields[] = {{"phases", REAL, offsetof(bench_phase, seconds), 0},
                                     {"phase_flops", REAL, offsetof(bench_phase, flops), 0},
                                     {"phase_l2", REAL, offsetof(bench_phase, l2), 0},
                                     {"phase_bytes", REAL, offsetof(bench_phase, bytes), 0},
                                     {0}};

static int put_phases(cJSON *item, const bench_row *r) {
    int ok = item != NULL;
    for (const field *f = phase_fields; f->name && ok; f++) {
        cJSON *object = cJSON_AddObjectToObject(item, f->name);
        ok = object != NULL;
        for (int p = 0; p < r->phases && ok; p++)
            ok =
                cJSON_AddNumberToObject(object, r->phase[p].name, real_at(&r->phase[p], f)) != NULL;
    }
    return ok;
}

/* Seconds, to the nanosecond. */
static int put_rounds(cJSON *item, const bench_row *r) {
    cJSON *list = item && r->rounds ? cJSON_AddArrayToObject(item, "rounds") : item;
    int ok = list != NULL;
    for (int i = 0; i < r->rounds && ok; i++)
        ok = cJSON_AddItemToArray(list, cJSON_CreateNumber(round(1e9 * r->round[i]) / 1e9));
    return ok;
}

/* The GPU's ceilings, each [median, lowest, highest]. */
static int put_ceilings(cJSON *root, const bench_run *run) {
    cJSON *object = cJSON_AddObjectToObject(root, "ceilings");
    int ok = object != NULL;
    for (int i = 0; i < BENCH_CEILINGS && ok && run->gpu[0]; i++) {
        const double three[] = {run->ceiling[i], run->ceiling_low[i], run->ceiling_high[i]};
        ok = cJSON_AddItemToObject(object, ceiling_names[i], cJSON_CreateDoubleArray(three, 3));
    }
    return ok;
}

static int put_rows(cJSON *root, const bench_run *run) {
    cJSON *rows = cJSON_AddArrayToObject(root, "rows");
    cJSON *fits = cJSON_AddArrayToObject(root, "fits");
    int ok = rows && fits;
    for (int i = 0; i < run->rows && ok; i++) {
        const bench_row *r = &run->row[i];
        cJSON *item = put_item(rows, row_fields, r);
        ok = put_rounds(item, r) && put_phases(item, r);
    }
    for (int i = 0; i < run->fits && ok; i++)
        ok = put_item(fits, fit_fields, &run->fit[i]) != NULL;
    return ok;
}

/* Write a temporary file and rename it, so that a full disk leaves the old file. */
static nsa_status write_text(const char *path, const char *text) {
    char temporary[4096];
    int length = snprintf(temporary, sizeof temporary, "%s.part", path);
    if (length < 0 || (size_t)length >= sizeof temporary)
        return nsa_fail(NSA_ERR_IO, "%.100s...: the name is too long", path);
    FILE *f = fopen(temporary, "w");
    if (!f)
        return nsa_fail(NSA_ERR_IO, "%s: %s", temporary, strerror(errno));
    int bad = fputs(text, f) == EOF || fputc('\n', f) == EOF;
    bad |= fclose(f) != 0;
    if (bad || rename(temporary, path)) {
        nsa_status status = nsa_fail(NSA_ERR_IO, "%s: %s", path, strerror(errno));
        remove(temporary);
        return status;
    }
    return NSA_OK;
}

nsa_status runfile_write(const bench_run *run, const char *path) {
    cJSON *root = cJSON_CreateObject();
    char *text = NULL;
    if (root && put(root, run_fields, run) && put_ceilings(root, run) && put_rows(root, run))
        text = cJSON_Print(root);
    nsa_status status = text ? write_text(path, text)
                             : nsa_fail(NSA_ERR_MEMORY, "no memory for the run file %s", path);
    cJSON_free(text);
    cJSON_Delete(root);
    return status;
}

nsa_status runfile_csv(const bench_run *run, const char *path) {
    FILE *f = fopen(path, "w");
    if (!f)
        return nsa_fail(NSA_ERR_IO, "%s: %s", path, strerror(errno));
    for (const field *c = row_fields; c->name; c++)
        fprintf(f, "%s%c", c->name, c[1].name ? ',' : '\n');
    for (int i = 0; i < run->rows; i++) {
        for (const field *c = row_fields; c->name; c++) {
            const void *from = &run->row[i];
            if (c->kind == TEXT) { /* a quote inside quotes is doubled */
                fputc('"', f);
                for (const char *p = (const char *)from + c->offset; *p; p++)
                    fprintf(f, *p == '"' ? "\"\"" : "%c", *p);
                fputc('"', f);
            } else if (c->kind == INTEGER) {
                fprintf(f, "%" PRId64, int_at(from, c));
            } else {
                fprintf(f, "%.9g", real_at(from, c));
            }
            fputc(c[1].name ? ',' : '\n', f);
        }
    }
    int bad = ferror(f);
    bad |= fclose(f) != 0;
    return bad ? nsa_fail(NSA_ERR_IO, "%s: %s", path, strerror(errno)) : NSA_OK;
}

/* ----------------------------------------------------------------- reading */

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
    double *const to[] = {run->ceiling, run->ceiling_low, run->ceiling_high};
    for (int i = 0; i < BENCH_CEILINGS; i++) {
        const cJSON *three = cJSON_GetObjectItemCaseSensitive(object, ceiling_names[i]);
        for (int j = 0; j < 3; j++) {
            const cJSON *item = cJSON_GetArrayItem(three, j);
            if (cJSON_IsNumber(item))
                to[j][i] = item->valuedouble;
        }
    }
}

static nsa_status get_all(const cJSON *root, bench_run *run, const char *path) {
    const cJSON *rows = cJSON_GetObjectItemCaseSensitive(root, "rows"), *item;
    const cJSON *fits = cJSON_GetObjectItemCaseSensitive(root, "fits");
    if (!cJSON_IsArray(rows) || !cJSON_IsArray(fits) || cJSON_GetArraySize(rows) > BENCH_MAX_ROWS ||
        cJSON_GetArraySize(fits) > BENCH_MAX_FITS)
        return nsa_fail(NSA_ERR_INPUT, "%s: not a run file: expected arrays rows and fits", path);
    nsa_status status = get(root, run_fields, run, path);
    get_ceilings(root, run);
    cJSON_ArrayForEach(item, rows) {
        if (!status)
            status = get_row(item, run, path);
    }
    cJSON_ArrayForEach(item, fits) {
        if (!status)
            status = get(item, fit_fields, &run->fit[run->fits++], path);
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
    if (!status && !cJSON_IsObject(root))
        status = nsa_fail(NSA_ERR_INPUT, "%s: not a JSON object", path);
    status = status ? status : get_all(root, run, path);
    cJSON_Delete(root);
    free(text);
    return status;
}
