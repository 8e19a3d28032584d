/**
 * @file parts.h
 * @brief The parts of a stage, so that a half-written one gets a score: compress, select, each
 * branch, each gradient, decode, ...
 *
 * A trial notes the result of each part, and continues after a part that failed. Parts that a trial
 * did not reach have failed.
 */
#ifndef HARNESS_PARTS_H
#define HARNESS_PARTS_H

#include "nsa_stage.h"

/** The parts, in the order in which a stage is written. */
typedef enum stage_part {
    PART_COMPRESS,
    PART_IMPORTANCE,
    PART_SELECT,
    PART_CMP,
    PART_SLC,
    PART_WIN,
    PART_GATE,
    PART_CAUSAL, /* plain causal attention */
    PART_ROWS,
    PART_DGATE,
    PART_DQ,
    PART_DK_CMP,
    PART_DV_CMP,
    PART_DK_SLC,
    PART_DV_SLC,
    PART_DK_WIN,
    PART_DV_WIN,
    PART_DPHI_K,
    PART_DPHI_V,
    PART_DECODE,
    PART_PACKING,
    PART_CAUSALITY,
    PART_NAN,
    PART_REPEAT,
    PART_MEMORY,
    PART_TENSORS, /* of any type, and on a device */
    PART_ERRORS,
    PART_COUNT
} stage_part;

/** A set of parts: bit 1 << part. */
typedef uint32_t part_set;

/** The part as a bit of a set. */
#define PART(name) ((part_set)1 << PART_##name)

/** What a forward computes: compress, select, the branches and their gate. */
#define PARTS_FORWARD                                                                              \
    (PART(COMPRESS) | PART(IMPORTANCE) | PART(SELECT) | PART(CMP) | PART(SLC) | PART(WIN) |        \
     PART(GATE))
/** Every gradient. */
#define PARTS_BACKWARD                                                                             \
    (PART(DGATE) | PART(DQ) | PART(DK_CMP) | PART(DV_CMP) | PART(DK_SLC) | PART(DV_SLC) |          \
     PART(DK_WIN) | PART(DV_WIN) | PART(DPHI_K) | PART(DPHI_V))

/** The result of one trial. */
typedef struct findings {
    part_set passed; /**< parts that were judged and passed every check */
    part_set failed; /**< parts that failed a check */
    char why[2048];  /**< "name: what was wrong\n" for each part that failed; then, if the trial
                        ended early, a line that says why */
} findings;

/** @return the part's name: "compress", "dq". */
const char *part_name(stage_part p);

/** @return the part that a result belongs to: its own for a gradient, PART_GATE for out. */
stage_part part_of(nsa_id id);

/** Clear the notes: a trial begins. */
void parts_begin(void);

/** Note the result of a check of a part, with nsa_last_error() if it failed. The trial goes on.
 *  @return NSA_OK, whatever `status` is */
nsa_status parts_note(stage_part p, nsa_status status);

/** Get the findings at the end of a trial.
 *  @param judged  the parts that its property judges
 *  @param status  what the property returned: an error fails each part that was not noted
 *  @param[out] f  the findings
 *  @return 1 if nothing failed */
int parts_end(part_set judged, nsa_status status, findings *f);

#endif
