/**
 * @file demo_report.h
 * @brief What the demo prints.
 */
#ifndef DEMO_REPORT_H
#define DEMO_REPORT_H

#include "demo/demo_judge.h"
#include "nsa_find.h"

/** The result of a stage. */
typedef enum demo_end {
    DEMO_SKIP = 0, /**< it cannot run here */
    DEMO_ORACLE,   /**< the stage that the others are compared with */
    DEMO_OK,       /**< every comparison holds */
    DEMO_FAIL      /**< a comparison does not hold */
} demo_end;

/** A line of the table. */
typedef struct demo_line {
    const char *name;     /**< the stage */
    demo_end end;         /**< its result */
    char why[256];        /**< the reason for SKIP or FAIL */
    int64_t rows;         /**< rows computed, 0 if none */
    double per_query;     /**< seconds a query */
    int judged;           /**< 1 if `verdict` is filled in */
    demo_verdict verdict; /**< of the comparison */
} demo_line;

/** Was the planted passage found again? */
typedef struct demo_found_again {
    int64_t queries; /**< queries times groups */
    int64_t hits;    /**< of these, how many selected the block of their twin */
    double chance;   /**< share expected for random blocks */
    int telling;     /**< 0 if the text is too repetitive or too short for a result */
    int ok;          /**< 1 if the share is clearly above chance */
} demo_found_again;

/** Print which text is used and what was planted.
 *  @param text  the text */
void demo_report_text(const demo_text *text);

/** Print how the inputs are made.
 *  @param cfg  the config */
void demo_report_model(const nsa_config *cfg);

/** Print the head of the table of stages.
 *  @param rows  rows of stage 00 */
void demo_report_head(int64_t rows);

/** Print one line of the table, and the reason below if there is one.
 *  @param line    the line
 *  @param oracle  seconds a query of stage 00, 0 if not known */
void demo_report_line(const demo_line *line, double oracle);

/** Print how many tokens a query reads, and the paper's Table 4.
 *  @param cfg  the config */
void demo_report_reads(const nsa_config *cfg);

/** Check whether the second occurrence's queries selected the blocks of the first.
 *  @param text  the text
 *  @param cfg   the config
 *  @param run   a run with the rows of the second occurrence
 *  @return the result */
demo_found_again demo_look_again(const demo_text *text, const nsa_config *cfg, const demo_run *run);

/** Print the result.
 *  @param text   the text
 *  @param found  of demo_look_again()
 *  @param stage  the stage that selected */
void demo_report_found(const demo_text *text, const demo_found_again *found, const char *stage);

#endif
