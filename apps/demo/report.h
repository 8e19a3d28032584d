/**
 * @file report.h
 * @brief What the demo prints, apart from the pictures.
 */
#ifndef DEMO_REPORT_H
#define DEMO_REPORT_H

#include "demo/judge.h"
#include "nsa_find.h"

/** How a stage came through. */
typedef enum demo_end {
    DEMO_SKIP = 0, /**< it cannot run here */
    DEMO_ORACLE,   /**< it is what the others are compared with */
    DEMO_OK,       /**< every comparison holds */
    DEMO_FAIL      /**< one does not */
} demo_end;

/** A line of the table. */
typedef struct demo_line {
    const char *name;     /**< the stage */
    demo_end end;         /**< how it came through */
    char why[256];        /**< the reason for SKIP or FAIL */
    int64_t rows;         /**< rows computed, 0 if none */
    double per_query;     /**< seconds a query */
    int judged;           /**< 1 if `verdict` counts */
    demo_verdict verdict; /**< of the comparison */
} demo_line;

/** What became of the planted passage. */
typedef struct demo_found_again {
    int64_t queries; /**< queries (times groups) asked */
    int64_t hits;    /**< of these, how many selected the block of their twin */
    double chance;   /**< share that picks at random would reach */
    int telling; /**< 0 if the text repeats itself too much, or is too short, for this to tell */
    int ok;      /**< 1 if the share is clearly above chance */
} demo_found_again;

/** Print which text was taken and what was planted.
 *  @param text  the text */
void demo_report_text(const demo_text *text);

/** Print what is made by hand.
 *  @param cfg  the config */
void demo_report_model(const nsa_config *cfg);

/** Print the head of the table of stages.
 *  @param rows  rows of stage 00 */
void demo_report_head(int64_t rows);

/** Print one line of it, and the reason below if there is one.
 *  @param line    the line
 *  @param oracle  seconds a query of stage 00, 0 if not known */
void demo_report_line(const demo_line *line, double oracle);

/** Print how many tokens a query reads, and the paper's Table 4.
 *  @param cfg  the config */
void demo_report_reads(const nsa_config *cfg);

/** Ask whether the second occurrence's queries selected the blocks of the first.
 *  @param text  the text
 *  @param cfg   the config
 *  @param run   whose selections; holds the rows of the second occurrence
 *  @return what was found */
demo_found_again demo_look_again(const demo_text *text, const nsa_config *cfg, const demo_run *run);

/** Print it.
 *  @param text   the text
 *  @param found  of demo_look_again()
 *  @param stage  whose selections */
void demo_report_found(const demo_text *text, const demo_found_again *found, const char *stage);

#endif
