/** @file fuzz_case.c
 *  @brief Fuzz target: any bytes as a case string are refused with an error, or give a consistent
 * case. */
#include "fuzz/bytes.h"
#include "fuzz/config_rules.h"
#include "harness/case.h"

/* Find the vectors from the project's folder, where the fuzzers are started. */
__attribute__((constructor)) static void find_vectors(void) {
    setenv("NSA_VECTORS", "tests/vectors", 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1); /* of the exact size, so that an overread is detected */
    test_case c;
    MUST(text);
    memcpy(text, data, size);
    text[size] = 0;
    nsa_status status = case_parse(text, &c);
    if (status) {
        MUST((status == NSA_ERR_CONFIG || status == NSA_ERR_IO) && *nsa_last_error());
    } else {
        int64_t tokens = 0;
        for (int b = 0; b < case_sequences(&c); b++)
            tokens += case_length(&c, b);
        MUST(!strcmp(c.text, text) && config_is_legal(&c.cfg));
        MUST(tokens == c.cfg.seq_len);
        MUST(case_max_len(&c) <= tokens && c.seqs <= 16);
        MUST((unsigned)c.data < DATA_KINDS && case_has_ties(&c) <= 1 && c.rows >= 0);
    }
    free(text);
    return 0;
}
