/**
 * @file case_folder.h
 * @brief A case of the exchange format: a folder with config.json, one .npy per input tensor, and
 * the expected results in expect/.
 */
#ifndef CASE_FOLDER_H
#define CASE_FOLDER_H

#include "nsa.h"

/** A case in memory. */
typedef struct case_folder {
    nsa_config cfg;     /**< resolved; max_seqs follows cu_seqlens unless config.json sets it */
    nsa_tensors in;     /**< inputs for nsa_load(), and dout if the folder has it */
    nsa_tensors expect; /**< results and gradients of expect/; absent ones are NSA_NONE */
} case_folder;

/** Read and check a case folder: the config, every input, every expected result. A .npy file that
 * is not named like an input (in expect/: a result) is an error: the name is probably misspelt.
 *  @param dir    the folder
 *  @param[out] c for case_folder_free(); empty on any error
 *  @return NSA_ERR_IO, NSA_ERR_CONFIG, NSA_ERR_INPUT or NSA_ERR_MEMORY, naming the file */
nsa_status case_folder_read(const char *dir, case_folder *c);

/** Free all tensors of a case.
 *  @param c  from case_folder_read() */
void case_folder_free(case_folder *c);

/** Read a config from the text of a config.json: one JSON object, strictly by RFC 8259, of known
 * keys, each at most once.
 *  @param text      need not end with a NUL
 *  @param n         its length
 *  @param label     the file's name in errors
 *  @param[out] cfg  the defaults with the text's keys set, not yet resolved
 *  @return NSA_ERR_CONFIG naming key, value and rule, or NSA_ERR_MEMORY */
nsa_status config_parse(const char *text, size_t n, const char *label, nsa_config *cfg);

#endif
