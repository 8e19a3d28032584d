/**
 * @file records.h
 * @brief What became of each trial: a file of records that the judge's processes share.
 *
 * Trials run in groups, a process a group, for starting a process costs more than most trials (on a
 * GPU, a second). A process writes each trial's record when it begins and again when it ends, so a
 * trial that crashed is known by the record that says it began.
 */
#ifndef RECORDS_H
#define RECORDS_H

#include "harness/suite.h"

#include <stdio.h>

/** How far a trial has come. */
typedef enum progress_of { WAITING, RUNNING, ENDED } progress_of;

/** One trial; plain bytes, so that processes can hand it on. */
typedef struct record {
    char stage[64];    /**< its name */
    char property[32]; /**< "" if the stage cannot run here: outcome.why says why */
    char text[320];    /**< the case */
    int on_gpu;        /**< the stage runs on a GPU, which one process at a time may use */
    progress_of state; /**< how far it has come */
    outcome outcome;   /**< once it has ended */
} record;

/** Make the file, in the temporary folder; child processes find it by $NSA_JUDGE_RECORDS.
 *  @return 0, or -1 with errno */
int records_create(const record *list, size_t count);

/** Write one record, whole. */
int records_put(size_t number, const record *r);

/** Read one record. @return 0, or -1 if there is none */
int records_get(size_t number, record *r);

/** Count a hang of a stage, in whatever process. */
void records_count_hang(const char *stage);

/** @return how often a stage has hung so far. */
size_t records_hangs(const char *stage);

/** Wait until no other process of this judge uses the GPU. @return what gpu_release() takes, or -1
 */
int gpu_acquire(void);

/** Let the next process have it. */
void gpu_release(int held);

/** Remove the file; only from the process that made it. */
void records_remove(void);

/** Count all records; print the score of each stage in which a trial failed, why trials were
 * skipped, and the closing line. With `report` not NULL also write TAP, or with `xml` JUnit.
 *  @param always   print every stage's score
 *  @param missing  what stages leave out, for the closing line; "" if nothing */
void records_report(int always, const char *missing, FILE *report, int xml);

#endif
