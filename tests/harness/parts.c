/** @file parts.c
 *  @brief Notes of a trial about the parts of a stage. */
#include "harness/parts.h"

#include <stdio.h>
#include <string.h>

const char *part_name(stage_part p) {
    static const char *const names[PART_COUNT] = {"compress",
                                                  "importance",
                                                  "selection",
                                                  "compressed branch",
                                                  "selected branch",
                                                  "window branch",
                                                  "gate",
                                                  "plain causal",
                                                  "rows",
                                                  "dgate",
                                                  "dq",
                                                  "dk_cmp",
                                                  "dv_cmp",
                                                  "dk_slc",
                                                  "dv_slc",
                                                  "dk_win",
                                                  "dv_win",
                                                  "dphi_k",
                                                  "dphi_v",
                                                  "decode",
                                                  "packing",
                                                  "causality",
                                                  "nan",
                                                  "repeat",
                                                  "memory",
                                                  "tensors",
                                                  "errors"};
    return names[p];
}

stage_part part_of(nsa_id id) {
    switch (id) {
    case NSA_K_PHI:
    case NSA_V_PHI:
        return PART_COMPRESS;
    case NSA_IMPORTANCE:
        return PART_IMPORTANCE;
    case NSA_BLOCK_IDX:
        return PART_SELECT;
    case NSA_OUT_CMP:
    case NSA_OUT_SLC:
    case NSA_OUT_WIN:
        return (stage_part)(PART_CMP + (id - NSA_OUT_CMP));
    case NSA_OUT_CAUSAL:
        return PART_CAUSAL;
    case NSA_DGATE:
        return PART_DGATE;
    default:
        break;
    }
    if (id >= NSA_DQ && id <= NSA_DV_WIN)
        return (stage_part)(PART_DQ + (id - NSA_DQ));
    if (id >= NSA_DPHI_K_PE)
        return id <= NSA_DPHI_K_B2 ? PART_DPHI_K : PART_DPHI_V;
    return PART_GATE;
}

/* The notes of the current trial; a program judges one at a time. */
static findings current;

/* Only the first failure of a part is reported. */
static void note_failure(stage_part p, const char *what) {
    size_t used = strlen(current.why);
    if (!(current.failed & (part_set)1 << p))
        snprintf(current.why + used, sizeof current.why - used, "%s: %s\n", part_name(p), what);
    current.failed |= (part_set)1 << p;
}

void parts_begin(void) {
    memset(&current, 0, sizeof current);
}

nsa_status parts_note(stage_part p, nsa_status status) {
    if (status)
        note_failure(p, nsa_last_error());
    else
        current.passed |= (part_set)1 << p;
    return NSA_OK;
}

int parts_end(part_set judged, nsa_status status, findings *f) {
    const part_set noted = current.passed | current.failed;
    if (!noted && !status && !(judged & (judged - 1)))
        current.passed = judged; /* a property of a single part need not note it */
    else if (!noted && !status)
        status = nsa_fail(NSA_ERR_STATE, "nothing was judged");
    if (status) {
        size_t used = strlen(current.why);
        snprintf(current.why + used, sizeof current.why - used, "%s\n", nsa_last_error());
        current.failed |= judged & ~noted ? judged & ~noted : judged;
    }
    current.passed &= ~current.failed;
    *f = current;
    return !current.failed;
}
