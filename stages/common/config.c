/** @file config.c
 *  @brief The one validator of configs: every rule and bound of docs/specification.md,
 * "Letters". */
#include "nsa.h"
#include "common/counts.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/** A whole-number key: its name in config.json, its offset in nsa_config, its bounds. */
typedef struct key_rule {
    const char *name;
    size_t offset;
    int64_t min, max;
    int required;
} key_rule;

#define KEY(name, min, max, required)                                                              \
    { #name, offsetof(nsa_config, name), min, max, required }

/* Positions fit int32, so a length, a count and a window may be that large and no larger. */
static const key_rule rules[] = {KEY(seq_len, 1, INT32_MAX, 1),
                                 KEY(q_heads, 1, INT32_MAX, 1),
                                 KEY(kv_heads, 1, INT32_MAX, 1),
                                 KEY(qk_dim, 1, 256, 1),
                                 KEY(v_dim, 1, 256, 1),
                                 KEY(cmp_block, 1, 256, 0),
                                 KEY(cmp_stride, 1, 256, 0),
                                 KEY(slc_block, 1, 256, 0),
                                 KEY(slc_count, 1, 128, 0),
                                 KEY(slc_init, 0, 128, 0),
                                 KEY(slc_local, 1, 128, 0),
                                 KEY(window, 1, INT32_MAX, 0),
                                 KEY(phi_hidden, 1, INT32_MAX, 0),
                                 KEY(max_seqs, 1, INT32_MAX, 0),
                                 KEY(max_seq_len, 1, INT32_MAX, 0)};

enum { RULES = sizeof rules / sizeof rules[0] };

static int64_t get(const nsa_config *config, const key_rule *rule) {
    int64_t value;
    memcpy(&value, (const char *)config + rule->offset, sizeof value);
    return value;
}

static void put(nsa_config *config, const key_rule *rule, int64_t value) {
    memcpy((char *)config + rule->offset, &value, sizeof value);
}

static nsa_status in_bounds(const key_rule *rule, int64_t value) {
    if (value < rule->min || value > rule->max)
        return nsa_fail(NSA_ERR_CONFIG, "%s %" PRId64 " is not in %" PRId64 "..%" PRId64,
                        rule->name, value, rule->min, rule->max);
    return NSA_OK;
}

nsa_config nsa_config_defaults(void) {
    nsa_config config = {.cmp_block = 32,
                         .cmp_stride = 16,
                         .slc_block = 64,
                         .slc_count = 16,
                         .slc_init = 1,
                         .slc_local = 2,
                         .window = 512,
                         .phi = NSA_PHI_MLP,
                         .phi_hidden = NSA_AUTO,
                         .scale = NSA_AUTO,
                         .max_seqs = NSA_AUTO,
                         .max_seq_len = NSA_AUTO};
    return config;
}

const char *nsa_phi_name(nsa_phi phi) {
    static const char *const names[] = {"mean", "gated", "mlp"};
    return (unsigned)phi < 3 ? names[phi] : "?";
}

static nsa_status set_phi(nsa_config *config, const char *text) {
    for (int i = 0; text && i < 3; i++) {
        if (!strcmp(text, nsa_phi_name((nsa_phi)i))) {
            config->phi = (nsa_phi)i;
            return NSA_OK;
        }
    }
    return nsa_fail(NSA_ERR_CONFIG, "phi %s%s%s is not one of \"mean\", \"gated\", \"mlp\"",
                    text ? "\"" : "", text ? text : "(a number)", text ? "\"" : "");
}

/* Written so that NaN fails. Beyond these bounds scale, or a difference of scores, would be 0 or
 * infinity in float32. */
static nsa_status check_scale(double scale) {
    if (!(scale >= 0x1p-100 && scale <= 0x1p100))
        return nsa_fail(NSA_ERR_CONFIG, "scale %g is not in 2^-100..2^100", scale);
    return NSA_OK;
}

nsa_status nsa_config_set(nsa_config *config, const char *key, double number, const char *text) {
    if (!strcmp(key, "phi"))
        return set_phi(config, text);
    int is_scale = !strcmp(key, "scale");
    const key_rule *rule = NULL;
    for (int i = 0; i < RULES && !is_scale; i++) {
        if (!strcmp(key, rules[i].name))
            rule = &rules[i];
    }
    if (!is_scale && !rule)
        return nsa_fail(NSA_ERR_CONFIG, "unknown key \"%.80s\"", key);
    if (text)
        return nsa_fail(NSA_ERR_CONFIG, "%s \"%.80s\" is not a number", key, text);
    if (is_scale) {
        config->scale = number;
        return check_scale(number);
    }
    if (!(fabs(number) <= 9007199254740992.0) || number != floor(number))
        return nsa_fail(NSA_ERR_CONFIG, "%s %.17g is not a whole number", key, number);
    put(config, rule, (int64_t)number);
    return in_bounds(rule, (int64_t)number);
}

/* The rules that relate keys; each key is already within its own bounds. */
static nsa_status check_relations(const nsa_config *c) {
    if (c->q_heads % c->kv_heads)
        return nsa_fail(NSA_ERR_CONFIG,
                        "q_heads %" PRId64 " is not a multiple of kv_heads %" PRId64, c->q_heads,
                        c->kv_heads);
    if (c->q_heads / c->kv_heads > 128)
        return nsa_fail(NSA_ERR_CONFIG,
                        "q_heads %" PRId64 " / kv_heads %" PRId64 " = G %" PRId64
                        " is more than 128",
                        c->q_heads, c->kv_heads, c->q_heads / c->kv_heads);
    if (c->cmp_stride > c->cmp_block)
        return nsa_fail(NSA_ERR_CONFIG, "cmp_stride %" PRId64 " is more than cmp_block %" PRId64,
                        c->cmp_stride, c->cmp_block);
    if (c->cmp_block % c->cmp_stride)
        return nsa_fail(NSA_ERR_CONFIG,
                        "cmp_block %" PRId64 " is not a multiple of cmp_stride %" PRId64,
                        c->cmp_block, c->cmp_stride);
    if (c->slc_block % c->cmp_stride)
        return nsa_fail(NSA_ERR_CONFIG,
                        "slc_block %" PRId64 " is not a multiple of cmp_stride %" PRId64,
                        c->slc_block, c->cmp_stride);
    if (c->cmp_block > c->slc_block)
        return nsa_fail(NSA_ERR_CONFIG, "cmp_block %" PRId64 " is more than slc_block %" PRId64,
                        c->cmp_block, c->slc_block);
    if (c->slc_count < c->slc_init + c->slc_local)
        return nsa_fail(NSA_ERR_CONFIG,
                        "slc_count %" PRId64 " is less than slc_init %" PRId64
                        " + slc_local %" PRId64,
                        c->slc_count, c->slc_init, c->slc_local);
    return NSA_OK;
}

/* Byte offsets of the largest tensors must fit 63 bits. */
static nsa_status check_sizes(const nsa_config *c) {
    int64_t max_dim = c->qk_dim > c->v_dim ? c->qk_dim : c->v_dim;
    int64_t tokens = c->seq_len, rows, bytes;
    int64_t cached = c->max_seqs * c->max_seq_len; /* below 2^62, as both fit 31 bits */
    tokens = cached > tokens ? cached : tokens;
    int64_t per_row = max_dim > c->slc_count ? max_dim : c->slc_count;
    if (__builtin_mul_overflow(tokens, c->q_heads, &rows) ||
        __builtin_mul_overflow(rows, per_row * 64, &bytes))
        return nsa_fail(NSA_ERR_CONFIG,
                        "%" PRId64 " tokens x %" PRId64 " heads x %" PRId64
                        " elements overflow 63-bit offsets",
                        tokens, c->q_heads, per_row);
    return NSA_OK;
}

nsa_status nsa_config_resolve(nsa_config *config) {
    if ((unsigned)config->phi > NSA_PHI_MLP)
        return nsa_fail(NSA_ERR_CONFIG, "phi %d is not 0 (mean), 1 (gated) or 2 (mlp)",
                        (int)config->phi);
    nsa_config c = *config;
    int64_t max_dim = c.qk_dim > c.v_dim ? c.qk_dim : c.v_dim;
    if (c.phi_hidden == NSA_AUTO) /* an illegal width is refused below; do not double it */
        c.phi_hidden = max_dim > 0 && max_dim <= 256 ? 2 * max_dim : 1;
    if (c.max_seqs == NSA_AUTO)
        c.max_seqs = 1;
    if (c.max_seq_len == NSA_AUTO)
        c.max_seq_len = c.seq_len;
    for (int i = 0; i < RULES; i++) {
        if (rules[i].required && get(&c, &rules[i]) == 0)
            return nsa_fail(NSA_ERR_CONFIG, "%s is required", rules[i].name);
        nsa_status status = in_bounds(&rules[i], get(&c, &rules[i]));
        if (status)
            return status;
    }
    if (c.scale == NSA_AUTO)
        c.scale = 1 / sqrt((double)c.qk_dim);
    nsa_status status = check_scale(c.scale);
    status = status ? status : check_relations(&c);
    status = status ? status : check_sizes(&c);
    if (!status)
        *config = c;
    return status;
}

int64_t nsa_cmp_tokens(const nsa_config *config, int64_t len) {
    return len < config->cmp_block ? 0 : (len - config->cmp_block) / config->cmp_stride + 1;
}

int64_t nsa_cmp_visible(const nsa_config *config, int64_t t) {
    return nsa_cmp_tokens(config, t + 1); /* i*d + l - 1 <= t  <=>  i <= (t + 1 - l) / d */
}

nsa_reads nsa_reads_at(const nsa_config *config, int64_t t) {
    int64_t own_block = t / config->slc_block; /* b; the selected blocks before it are complete */
    int64_t blocks = own_block + 1 < config->slc_count ? own_block + 1 : config->slc_count;
    nsa_reads reads = {.cmp = nsa_cmp_visible(config, t),
                       .slc = (blocks - 1) * config->slc_block + t % config->slc_block + 1,
                       .win = t + 1 < config->window ? t + 1 : config->window,
                       .dense = t + 1};
    return reads;
}
