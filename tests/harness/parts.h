/**
 * @file parts.h
 * @brief The parts that a stage is made of, so that one half done gets a score: compress, select,
 * each branch, each gradient, decode, ...
 *
 * A trial notes what it found out about each part; one that failed in one part goes on with the
 * next. The parts of a trial that ended before it came to them have failed.
 */
#ifndef HARNESS_PARTS_H
#define HARNESS_PARTS_H

#include "nsa.h"

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
    PART_ERRORS,
    PART_COUNT
} stage_part;

/** A set of parts: bit 1 << part. */
typedef uint32_t part_set;

/** The part as a bit of a set. */
#define PART(name) ((part_set)1 << PART_##name)

/** compress, select, the branches and their gate: what a forward computes. */
#define PARTS_FORWARD                                                                              \
    (PART(COMPRESS) | PART(IMPORTANCE) | PART(SELECT) | PART(CMP) | PART(SLC) | PART(WIN) |        \
     PART(GATE))
/** Every gradient. */
#define PARTS_BACKWARD                                                                             \
    (PART(DGATE) | PART(DQ) | PART(DK_CMP) | PART(DV_CMP) | PART(DK_SLC) | PART(DV_SLC) |          \
     PART(DK_WIN) | PART(DV_WIN) | PART(DPHI_K) | PART(DPHI_V))

/** What one trial found out. */
typedef struct findings {
    part_set passed; /**< parts judged, none of whose checks failed */
    part_set failed; /**< parts one of whose checks failed */
    char why[2048];  /**< "name: what was wrong\n" for each part that failed a check; then, if the
                        trial ended early, a line that says why */
} findings;

/** @return the part's name: "compress", "dq". */
const char *part_name(stage_part p);

/** @return the part that a result belongs to: its own for a gradient, PART_GATE for out. */
stage_part part_of(nsa_id id);

/** Forget what was noted: a trial begins. */
void parts_begin(void);

/** Note a check of a part. What failed goes into the findings with nsa_last_error(), and the trial
 *  goes on.
 *  @return NSA_OK, whatever `status` is */
nsa_status parts_note(stage_part p, nsa_status status);

/** The findings of a trial that ended.
 *  @param judged  the parts that its property is about
 *  @param status  how the property ended: an error fails each of them that was not noted
 *  @param[out] f  what was found out
 *  @return 1 if nothing failed */
int parts_end(part_set judged, nsa_status status, findings *f);

#endif
