/**
 * @file nsa_find.h
 * @brief Finding stages: shared objects `NN_name.so`, each built from the folder `stages/NN_name`.
 */
#ifndef NSA_FIND_H
#define NSA_FIND_H

#include "nsa_stage.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A stage found as a shared object `NN_name.so`. */
typedef struct nsa_found {
    char name[64];          /**< "01_naive_nsa": the file's name, which is the folder's */
    const nsa_stage *stage; /**< NULL if it could not be loaded */
    char problem[256];      /**< why not */
    void *handle;           /**< of dlopen */
} nsa_found;

/** @return the folder of the stages: $NSA_STAGES; else, beside libnsa.so itself, `stages` as built
 * or `nsa/stages` as installed; "" if none exists. Lives until the next call. */
NSA_EXPORT const char *nsa_stage_dir(void);

/** Load every stage of a folder, in the order of their names.
 *  @param dir        the folder, NULL for nsa_stage_dir()
 *  @param[out] list  an array for nsa_free_stages()
 *  @param[out] count how many
 *  @return NSA_ERR_IO if the folder cannot be read or holds no stage. */
NSA_EXPORT nsa_status nsa_find_stages(const char *dir, nsa_found **list, size_t *count);

/** Load one stage by its name ("01_naive_nsa"), number ("01") or path ("x/y/99_mine.so").
 *  @param dir         the folder, NULL for nsa_stage_dir()
 *  @param name        which stage
 *  @param[out] found  for nsa_free_stage() */
NSA_EXPORT nsa_status nsa_find_stage(const char *dir, const char *name, nsa_found *found);

/** Unload what nsa_find_stages() loaded. */
NSA_EXPORT void nsa_free_stages(nsa_found *list, size_t count);

/** Unload what nsa_find_stage() loaded. */
NSA_EXPORT void nsa_free_stage(nsa_found *found);

#ifdef __cplusplus
}
#endif

#endif
