/**
 * @file records.h
 * @brief The outcome of each trial: a file of records shared by the judge's processes.
 *
 * Trials run in groups with a process for each group, because starting a process takes longer than
 * most trials (on a GPU, a second). A process writes each trial's record when it begins and again
 * when it ends; a record that only began belongs to a trial that crashed.
 */
#ifndef RECORDS_H
#define RECORDS_H

#include "harness/suite.h"

#include <stdio.h>

/** The state of a trial. */
typedef enum progress_of { WAITING, RUNNING, ENDED } progress_of;

/** One trial; plain data, to be stored in the file. */
typedef struct record {
    char stage[64];    /**< its name */
    char property[32]; /**< "" if the stage cannot run here: outcome.why says why */
    char text[320];    /**< the case */
    int on_gpu;        /**< the stage runs on a GPU, which one process at a time may use */
    progress_of state; /**< waiting, running or ended */
    outcome outcome;   /**< once it has ended */
} record;

/** Make the file, in the temporary folder; child processes find it by $NSA_JUDGE_RECORDS.
 *  @return 0, or -1 with errno */
int records_create(const record *list, size_t count);

/** Write one record, whole. */
int records_put(size_t number, const record *r);

/** Read one record. @return 0, or -1 if there is none */
int records_get(size_t number, record *r);

/** Count a hang of a stage, from any process. */
void records_count_hang(const char *stage);

/** @return how often a stage has hung so far. */
size_t records_hangs(const char *stage);

/** Wait until no other process of this judge uses the GPU. @return for gpu_release(), or -1 */
int gpu_acquire(void);

/** Let the next process use the GPU. */
void gpu_release(int held);

/** Remove the file; only from the process that made it. */
void records_remove(void);

/** Count all records; print the score of each stage in which a trial failed, the reasons for
 * skipping, and the closing line.
 *  @param always   print every stage's score
 *  @param missing  what stages lack, for the closing line; "" if nothing
 *  @param report   not NULL: also write TAP to it
 *  @param xml      1: write JUnit in place of TAP */
void records_report(int always, const char *missing, FILE *report, int xml);

#endif
