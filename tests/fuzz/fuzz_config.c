/** @file fuzz_config.c
 *  @brief Fuzz target: any bytes as a config.json are refused with an error, or give a legal config
 * that does not change when it is resolved again. */
#include "fuzz/bytes.h"
#include "fuzz/config_rules.h"
#include "io/case_folder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    nsa_config cfg;
    nsa_status status = config_parse((const char *)data, size, "fuzz.json", &cfg);
    status = status ? status : nsa_config_resolve(&cfg);
    if (status) {
        MUST(status == NSA_ERR_CONFIG && *nsa_last_error());
    } else {
        nsa_config again = cfg;
        MUST(config_is_legal(&cfg));
        MUST(nsa_config_resolve(&again) == NSA_OK);
        MUST(again.scale == cfg.scale && again.phi_hidden == cfg.phi_hidden);
        MUST(*nsa_phi_name(cfg.phi) != '?');
    }
    return 0;
}
