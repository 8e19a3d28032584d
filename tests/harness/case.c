/** @file case.c
 *  @brief Parsing case strings: "T=97,Hq=4,..." to a config and the source of its inputs. */
#include "harness/case.h"
#include "harness/edges.h"
#include "harness/random.h"
#include "io/case_folder.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Keys of a case string, and the keys of config.json that they set. */
static const char *const keys[][2] = {
    {"Hq", "q_heads"},        {"Hkv", "kv_heads"},    {"dk", "qk_dim"},    {"dv", "v_dim"},
    {"l", "cmp_block"},       {"d", "cmp_stride"},    {"l2", "slc_block"}, {"n", "slc_count"},
    {"init", "slc_init"},     {"local", "slc_local"}, {"w", "window"},     {"phi", "phi"},
    {"hidden", "phi_hidden"}, {"scale", "scale"},     {"T", "seq_len"}};

/* Small dims put every boundary within a few dozen tokens. */
static nsa_config case_defaults(void) {
    nsa_config cfg = nsa_config_defaults();
    cfg.seq_len = 100;
    cfg.q_heads = 4;
    cfg.kv_heads = 2;
    cfg.qk_dim = 8;
    cfg.v_dim = 6;
    cfg.cmp_block = 8;
    cfg.cmp_stride = 4;
    cfg.slc_block = 16;
    cfg.slc_count = 4;
    cfg.window = 12;
    cfg.phi = NSA_PHI_MEAN;
    return cfg;
}

/* "15+0+115": lengths of the packed sequences; their sum is T. */
static nsa_status parse_lengths(test_case *c, const char *value) {
    c->seqs = 0;
    c->cfg.seq_len = 0;
    for (const char *p = value; *p;) {
        char *end;
        long long len = strtoll(p, &end, 10);
        if (end == p || len < 0 || len > INT32_MAX || c->seqs == 16 || (*end && *end != '+'))
            return nsa_fail(NSA_ERR_CONFIG, "seqs=%s is not up to 16 lengths joined by +", value);
        c->lens[c->seqs++] = len;
        c->cfg.seq_len += len;
        p = *end ? end + 1 : end;
    }
    c->cfg.max_seqs = c->seqs;
    return NSA_OK;
}

static nsa_status parse_data(test_case *c, const char *value) {
    static const char *const names[] = {"normal",  "ties", "planted", "large",  "huge",
                                        "big",     "low",  "high",    "rising", "tiny",
                                        "shifted", "shut", "faint"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!strcmp(value, names[i])) {
            c->data = (case_data)i;
            return NSA_OK;
        }
    }
    return nsa_fail(NSA_ERR_CONFIG,
                    "data=%s is not one of normal, ties, planted, large, huge, big, low, high, "
                    "rising, tiny, shifted, shut, faint",
                    value);
}

static nsa_status parse_one(test_case *c, const char *key, const char *value) {
    char *end;
    double number = strtod(value, &end);
    int is_number = end != value && !*end;
    if (!strcmp(key, "seqs"))
        return parse_lengths(c, value);
    if (!strcmp(key, "data"))
        return parse_data(c, value);
    if (!strcmp(key, "vector")) {
        if (strchr(value, '/') || strlen(value) >= sizeof c->vector)
            return nsa_fail(NSA_ERR_CONFIG, "vector=%.64s is not the name of a folder", value);
        snprintf(c->vector, sizeof c->vector, "%s", value);
        return NSA_OK;
    }
    if (!strcmp(key, "seed") || !strcmp(key, "rows")) {
        if (!is_number || !(number >= 0 && number <= 1e9)) /* written so that NaN fails */
            return nsa_fail(NSA_ERR_CONFIG, "%s=%s is not a number in 0..1e9", key, value);
        if (key[0] == 's')
            c->seed = (uint64_t)number;
        else
            c->rows = (int64_t)number;
        return NSA_OK;
    }
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(key, keys[i][0]))
            continue;
        if (strcmp(key, "phi") && !is_number)
            return nsa_fail(NSA_ERR_CONFIG, "%s=%s is not a number", key, value);
        return nsa_config_set(&c->cfg, keys[i][1], number, strcmp(key, "phi") ? NULL : value);
    }
    return nsa_fail(NSA_ERR_CONFIG, "unknown key \"%s\" in a case", key);
}

/* A vector's config and packing come from its folder. */
static nsa_status parse_vector(test_case *c) {
    char path[PATH_MAX];
    case_folder folder;
    snprintf(path, sizeof path, "%s/%s", case_vector_dir(), c->vector);
    nsa_status status = case_folder_read(path, &folder);
    if (status)
        return status;
    c->cfg = folder.cfg;
    c->seqs = 0;
    const nsa_tensor *cu = &folder.in.at[NSA_CU_SEQLENS];
    for (int64_t b = 0; cu->dtype && b + 1 < cu->shape[0] && b < 16; b++) {
        const int32_t *offsets = cu->data;
        c->lens[c->seqs++] = offsets[b + 1] - offsets[b];
    }
    case_folder_free(&folder);
    return NSA_OK;
}

/* "key=value,key=value"; splits `text` in place. Each key may be given once: the last of several
 * values would win, and the case would not be the one that its author meant. */
static nsa_status parse_parts(test_case *c, char *text) {
    const char *given[sizeof c->text / 4]; /* a part has at least 4 characters: "T=5," */
    int count = 0;
    for (char *part; (part = strsep(&text, ","));) {
        char *equals = strchr(part, '=');
        if (!equals || equals == part || !equals[1])
            return nsa_fail(NSA_ERR_CONFIG, "\"%s\" in a case is not key=value", part);
        *equals = 0;
        for (int i = 0; i < count; i++) {
            if (!strcmp(given[i], part))
                return nsa_fail(NSA_ERR_CONFIG, "\"%s\" is given twice in a case", part);
        }
        given[count++] = part;
        nsa_status status = parse_one(c, part, equals + 1);
        if (status)
            return status;
    }
    return NSA_OK;
}

nsa_status case_parse(const char *text, test_case *c) {
    memset(c, 0, sizeof *c);
    c->cfg = case_defaults();
    if (strlen(text) >= sizeof c->text)
        return nsa_fail(NSA_ERR_CONFIG, "a case of %zu characters is longer than %zu", strlen(text),
                        sizeof c->text - 1);
    snprintf(c->text, sizeof c->text, "%s", text);
    c->seed = random_seed(text);
    char parts[sizeof c->text];
    snprintf(parts, sizeof parts, "%s", text);
    nsa_status status = parse_parts(c, parts);
    if (status)
        return status;
    if (c->vector[0])
        return parse_vector(c);
    status = nsa_config_resolve(&c->cfg);
    status = status ? status : edge_check(c);
    int64_t tokens = 0;
    for (int b = 0; b < case_sequences(c); b++)
        tokens += case_length(c, b);
    if (!status && tokens != c->cfg.seq_len)
        status = nsa_fail(NSA_ERR_CONFIG, "T=%lld is not the sum of seqs, %lld",
                          (long long)c->cfg.seq_len, (long long)tokens);
    return status;
}

int case_has_ties(const test_case *c) {
    return c->data == DATA_TIES || c->data == DATA_PLANTED || strstr(c->vector, "ties");
}

int case_sequences(const test_case *c) {
    return c->seqs ? c->seqs : 1;
}

int64_t case_length(const test_case *c, int b) {
    return c->seqs ? c->lens[b] : c->cfg.seq_len;
}

int64_t case_max_len(const test_case *c) {
    int64_t max_len = 0;
    for (int b = 0; b < case_sequences(c); b++)
        max_len = case_length(c, b) > max_len ? case_length(c, b) : max_len;
    return max_len;
}

const char *case_vector_dir(void) {
    static char dir[PATH_MAX + 32];
    static const char *const places_to_look[] = {"../tests/vectors", "../share/nsa/vectors"};
    const char *given = getenv("NSA_VECTORS");
    if (given && *given)
        return given;
    char self[PATH_MAX];
    struct stat st;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    for (int i = 0; i < 2; i++) {
        snprintf(dir, sizeof dir, "%s/%s", self, places_to_look[i]);
        if (!stat(dir, &st) && S_ISDIR(st.st_mode))
            break;
    }
    return dir;
}
