/** @file case_folder.c
 *  @brief Reading a case: config.json, the inputs, the expected results. */
#include "io/case_folder.h"
#include "io/file.h"
#include "io/json.h"
#include "io/npy.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    CONFIG_MAX_BYTES = 1 << 16, /* bytes of a config.json; usually a few hundred */
    NAME_MAX_SHOWN = 80         /* characters of a file name in an error */
};

/* Join dir/name and suffix; too long is an error, for a truncated path could name another file. */
static nsa_status join(char path[PATH_MAX], const char *dir, const char *name, const char *suffix) {
    int n = snprintf(path, PATH_MAX, "%s/%s%s", dir, name, suffix);
    return n < PATH_MAX ? NSA_OK : nsa_fail(NSA_ERR_IO, "%s: the path is too long", npy_label(dir));
}

/* ----------------------------------------------------------------- config.json */

/* Set one key. Values are numbers, and for phi a string. */
static nsa_status set_key(const cJSON *item, const char *label, nsa_config *cfg) {
    const char *is = cJSON_IsBool(item)     ? "a boolean"
                     : cJSON_IsNull(item)   ? "null"
                     : cJSON_IsArray(item)  ? "an array"
                     : cJSON_IsObject(item) ? "an object"
                                            : NULL;
    if (is)
        return nsa_fail(NSA_ERR_CONFIG, "%s: %.80s is %s, expected a %s", npy_label(label),
                        item->string, is, strcmp(item->string, "phi") ? "number" : "string");
    nsa_status status = nsa_config_set(cfg, item->string, item->valuedouble,
                                       cJSON_IsString(item) ? item->valuestring : NULL);
    return status ? nsa_fail(status, "%s: %s", npy_label(label), nsa_last_error()) : NSA_OK;
}

/* Set all keys; none may occur twice. An unknown key ends the loop, so comparing each key with all
 * before it stays cheap. */
static nsa_status set_keys(const cJSON *root, const char *label, nsa_config *cfg) {
    nsa_status status = NSA_OK;
    for (const cJSON *item = root->child; item && !status; item = item->next) {
        for (const cJSON *before = root->child; before != item && !status; before = before->next) {
            if (!strcmp(before->string, item->string))
                status = nsa_fail(NSA_ERR_CONFIG, "%s: key \"%s\" stands there twice",
                                  npy_label(label), item->string);
        }
        status = status ? status : set_key(item, label, cfg);
    }
    return status;
}

nsa_status config_parse(const char *text, size_t n, const char *label, nsa_config *cfg) {
    *cfg = nsa_config_defaults();
    if (n > CONFIG_MAX_BYTES)
        return nsa_fail(NSA_ERR_CONFIG, "%s: longer than %d bytes", npy_label(label),
                        CONFIG_MAX_BYTES);
    /* cJSON accepts NUL as white space, and an escaped NUL ends a string. No key or value needs NUL
     * or an escape, so refuse both. */
    for (size_t i = 0; i < n; i++) {
        if (!text[i] || text[i] == '\\')
            return nsa_fail(NSA_ERR_CONFIG, "%s: byte %zu is a %s: no key or value has one",
                            npy_label(label), i, text[i] ? "backslash" : "NUL");
    }
    nsa_status status = json_check(text, n, NSA_ERR_CONFIG, label);
    if (status)
        return status;
    char *copy = malloc(n + 1); /* cJSON finds trailing text only if the length includes a NUL */
    if (!copy)
        return nsa_fail(NSA_ERR_MEMORY, "%s: no memory for it", npy_label(label));
    memcpy(copy, text, n);
    copy[n] = 0;
    const char *end = copy;
    cJSON *root = cJSON_ParseWithLengthOpts(copy, n + 1, &end, 1);
    if (!root)
        status = nsa_fail(NSA_ERR_CONFIG, "%s: cannot be read from byte %td of %zu on",
                          npy_label(label), end - copy, n);
    else if (!cJSON_IsObject(root))
        status = nsa_fail(NSA_ERR_CONFIG, "%s: not a JSON object", npy_label(label));
    else
        status = set_keys(root, label, cfg);
    cJSON_Delete(root);
    free(copy);
    return status;
}

/* Read one byte more than allowed, so that config_parse() notices a longer file. */
static nsa_status read_config(const char *dir, nsa_config *cfg) {
    char path[PATH_MAX];
    nsa_status status = join(path, dir, "config", ".json");
    if (status)
        return status;
    char *text;
    size_t n;
    status = file_read(path, CONFIG_MAX_BYTES + 1, &text, &n);
    status = status ? status : config_parse(text, n, path, cfg);
    free(text);
    return status;
}

/* --------------------------------------------------------------------- tensors */

/* 1 if the folder, or with `results` its expect/, may have a file of that name. */
static int belongs(nsa_id id, int results) {
    if (id == NSA_BLOCK_IDX) /* in both: forced blocks, and selected blocks */
        return 1;
    return results ? id > NSA_BLOCK_IDX && id < NSA_ID_COUNT
                   : id < NSA_BLOCK_IDX && id != NSA_ACTIVE;
}

/* Check the name of one file: ignored, a known tensor, or an error. */
static nsa_status check_name(const char *dir, const char *file, int results,
                             const nsa_config *cfg) {
    size_t n = strlen(file);
    char name[NAME_MAX + 1];
    if (n < 4 || strcmp(file + n - 4, ".npy"))
        return NSA_OK; /* other files, such as notes, are allowed */
    snprintf(name, sizeof name, "%.*s", (int)(n - 4), file);
    nsa_id id = nsa_id_named(name);
    if (!belongs(id, results))
        return nsa_fail(NSA_ERR_INPUT, "%s/%.*s: no %s has that name", npy_label(dir),
                        NAME_MAX_SHOWN, file, results ? "result" : "input");
    if (!nsa_has(cfg, id))
        return nsa_fail(NSA_ERR_INPUT, "%s/%s: phi \"%s\" has no such weight", npy_label(dir), file,
                        nsa_phi_name(cfg->phi));
    return NSA_OK;
}

/* Refuse .npy files that nothing would read. Sorted, so that the error does not depend on the
 * disk. */
static nsa_status check_names(const char *dir, int results, const nsa_config *cfg) {
    struct dirent **files;
    int count = scandir(dir, &files, NULL, alphasort);
    if (count < 0)
        return nsa_fail(NSA_ERR_IO, "%s: %s", npy_label(dir), strerror(errno));
    nsa_status status = NSA_OK;
    for (int i = 0; i < count; i++) {
        status = status ? status : check_name(dir, files[i]->d_name, results, cfg);
        free(files[i]);
    }
    free(files);
    return status;
}

/* Read every tensor in the folder. */
static nsa_status read_tensors(const char *dir, int results, const nsa_config *cfg,
                               nsa_tensors *to) {
    nsa_status status = check_names(dir, results, cfg);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        char path[PATH_MAX];
        struct stat st;
        if (!belongs((nsa_id)id, results) || !nsa_has(cfg, (nsa_id)id))
            continue;
        status = join(path, dir, nsa_name((nsa_id)id), ".npy");
        /* lstat: a dangling link exists, and reading it is an error */
        if (!status && (!lstat(path, &st) || errno != ENOENT))
            status = npy_read(path, &to->at[id]);
    }
    return status;
}

/* Check that the required inputs are present; nsa_load() checks shapes. */
static nsa_status check_present(const char *dir, const case_folder *c) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        int weight = id >= NSA_PHI_FIRST && id <= NSA_PHI_LAST && nsa_has(&c->cfg, (nsa_id)id);
        if ((id <= NSA_GATE || weight) && !c->in.at[id].dtype)
            return nsa_fail(NSA_ERR_INPUT, "%s/%s.npy is missing", npy_label(dir),
                            nsa_name((nsa_id)id));
    }
    return NSA_OK;
}

/* Resolve the config; seq_len must agree with q, and max_seqs defaults to the packed sequences. */
static nsa_status settle_config(const char *dir, case_folder *c) {
    const nsa_tensor *q = &c->in.at[NSA_Q], *cu = &c->in.at[NSA_CU_SEQLENS];
    /* nsa_load() checks cu_seqlens itself. */
    if (c->cfg.max_seqs == NSA_AUTO && cu->dtype && cu->ndim == 1 && cu->shape[0] > 1)
        c->cfg.max_seqs = cu->shape[0] - 1;
    nsa_status status = nsa_config_resolve(&c->cfg);
    if (status)
        return nsa_fail(status, "%s/config.json: %s", npy_label(dir), nsa_last_error());
    if (q->shape[0] != c->cfg.seq_len)
        return nsa_fail(NSA_ERR_INPUT,
                        "%s/q.npy holds %" PRId64 " tokens, seq_len in config.json is %" PRId64,
                        npy_label(dir), q->shape[0], c->cfg.seq_len);
    return NSA_OK;
}

/* expect/ is optional. */
static nsa_status read_expect(const char *dir, case_folder *c) {
    char path[PATH_MAX];
    struct stat st;
    nsa_status status = join(path, dir, "expect", "");
    if (status || (lstat(path, &st) && errno == ENOENT))
        return status;
    return read_tensors(path, 1, &c->cfg, &c->expect);
}

nsa_status case_folder_read(const char *dir, case_folder *c) {
    memset(c, 0, sizeof *c);
    nsa_status status = read_config(dir, &c->cfg);
    nsa_config trial = c->cfg; /* check its rules before reading large tensors */
    if (!status && (status = nsa_config_resolve(&trial)))
        status = nsa_fail(status, "%s/config.json: %s", npy_label(dir), nsa_last_error());
    status = status ? status : read_tensors(dir, 0, &c->cfg, &c->in);
    status = status ? status : check_present(dir, c);
    status = status ? status : settle_config(dir, c);
    status = status ? status : read_expect(dir, c);
    if (status)
        case_folder_free(c);
    return status;
}

void case_folder_free(case_folder *c) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        npy_free(&c->in.at[id]);
        npy_free(&c->expect.at[id]);
    }
}
