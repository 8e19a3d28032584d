/* First steps with the contract: one forward of one stage, and what came out of it.
 *
 *   cc -std=c11 -Istages docs/examples/first_steps.c -o build/first_steps \
 *      -Lbuild -lnsa -lm -Wl,-rpath,'$ORIGIN'
 *   build/first_steps 01 */
#include "nsa.h"
#include "nsa_find.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Numbers that are the same on every machine: a linear congruential generator, values in [0,1). */
static double next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 40) / (1 << 24);
}

/* Fill `t` with a float32 tensor [a,b,c]; values between lo and hi. */
static nsa_status random_tensor(nsa_tensor *t, int64_t a, int64_t b, int64_t c, double lo,
                                double hi, uint64_t *state) {
    *t = (nsa_tensor){.dtype = NSA_F32, .ndim = 3, .shape = {a, b, c}};
    int64_t count = nsa_count(t);
    float *x = t->data = malloc((size_t)count * sizeof *x);
    if (!x)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %" PRId64 " numbers", count);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)(lo + (hi - lo) * next_random(state));
    return NSA_OK;
}

/* What load() needs: q, the three pairs of keys and values, and the gate. phi "mean" has no
 * weights. An input left all zero is absent. */
static nsa_status make_inputs(const nsa_config *c, nsa_tensors *in) {
    int64_t T = c->seq_len;
    uint64_t seed = 1;
    nsa_status status = random_tensor(&in->at[NSA_Q], T, c->q_heads, c->qk_dim, -1, 1, &seed);
    for (int id = NSA_K_CMP; id <= NSA_V_WIN && !status; id++) {
        int is_key = id == NSA_K_CMP || id == NSA_K_SLC || id == NSA_K_WIN;
        status =
            random_tensor(&in->at[id], T, c->kv_heads, is_key ? c->qk_dim : c->v_dim, -1, 1, &seed);
    }
    return status ? status : random_tensor(&in->at[NSA_GATE], T, c->q_heads, 3, 0, 1, &seed);
}

/* Get a result's type and shape, allocate it, and read it. */
static nsa_status read_result(nsa_context *ctx, nsa_id id, nsa_tensor *t) {
    nsa_status status = nsa_result(ctx, id, t);
    if (status)
        return status;
    t->data = malloc((size_t)nsa_count(t) * nsa_dtype_size(t->dtype));
    return t->data ? nsa_read(ctx, id, t) : nsa_fail(NSA_ERR_MEMORY, "no memory for a result");
}

/* Results are float64 from a float64 stage, float32 from the others. */
static double element(const nsa_tensor *t, int64_t i) {
    return t->dtype == NSA_F64 ? ((const double *)t->data)[i] : ((const float *)t->data)[i];
}

/* Print which blocks the last query selected, and whether out is the gated sum of its branches. */
static nsa_status report(nsa_context *ctx, const nsa_config *c, const nsa_tensors *in) {
    static const nsa_id ids[] = {NSA_OUT, NSA_OUT_CMP, NSA_OUT_SLC, NSA_OUT_WIN, NSA_BLOCK_IDX};
    enum { OUT, CMP, SLC, WIN, IDX, RESULTS };
    nsa_tensor r[RESULTS] = {{0}};
    nsa_status status = NSA_OK;
    for (int i = 0; i < RESULTS && !status; i++)
        status = read_result(ctx, ids[i], &r[i]);
    const float *gate = in->at[NSA_GATE].data; /* [T,Hq,3] */
    int64_t mismatches = 0;
    for (int64_t i = 0, count = status ? 0 : nsa_count(&r[OUT]); i < count; i++) {
        const float *g = gate + i / c->v_dim * 3;
        double sum =
            g[0] * element(&r[CMP], i) + g[1] * element(&r[SLC], i) + g[2] * element(&r[WIN], i);
        mismatches += !(fabs(sum - element(&r[OUT], i)) <= 1e-5); /* written so that NaN counts */
    }
    for (int64_t h = 0; h < c->kv_heads && !status; h++) {
        const int32_t *idx = r[IDX].data; /* [T,Hkv,n] */
        idx += ((c->seq_len - 1) * c->kv_heads + h) * c->slc_count;
        printf("query %" PRId64 ", kv head %" PRId64 ", reads blocks", c->seq_len - 1, h);
        for (int64_t j = 0; j < c->slc_count && idx[j] >= 0; j++)
            printf(" %d", idx[j]);
        printf(" of 0..%" PRId64 "\n", (c->seq_len - 1) / c->slc_block);
    }
    if (!status)
        printf("out is the gated sum of its branches, to 1e-5: %s\n", mismatches ? "no" : "yes");
    for (int i = 0; i < RESULTS; i++)
        free(r[i].data);
    if (!status && mismatches)
        status = nsa_fail(NSA_ERR_STATE, "%" PRId64 " elements are not the sum", mismatches);
    return status;
}

int main(int argc, char **argv) {
    nsa_config config = nsa_config_defaults();
    config.seq_len = 256; /* T */
    config.q_heads = 4;
    config.kv_heads = 2; /* so G = 2 query heads share keys, values and blocks */
    config.qk_dim = 16;
    config.v_dim = 8;
    config.cmp_block = 8; /* l */
    config.cmp_stride = 4;
    config.slc_block = 16; /* l' */
    config.slc_count = 4;  /* n: the first block, the last two, and one free block */
    config.window = 32;
    config.phi = NSA_PHI_MEAN;

    nsa_setup setup = {.flags = NSA_WANT_BRANCHES};
    nsa_tensors in = {0};
    nsa_found found = {0};
    nsa_context *ctx = NULL;
    nsa_status status = nsa_find_stage(NULL, argc > 1 ? argv[1] : "01", &found);
    if (!status)
        printf("stage %s: %s\n", found.name, found.stage->idea);
    status = status ? status : nsa_open(found.stage, &config, &setup, &ctx);
    status = status ? status : make_inputs(&config, &in);
    status = status ? status : nsa_load(ctx, &in);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : report(ctx, &config, &in);
    if (status)
        fprintf(stderr, "first_steps: %s: %s\n", nsa_status_name(status), nsa_last_error());

    nsa_close(ctx); /* first the context, then its stage */
    nsa_free_stage(&found);
    for (int id = 0; id < NSA_ID_COUNT; id++)
        free(in.at[id].data);
    return status ? EXIT_FAILURE : EXIT_SUCCESS;
}
