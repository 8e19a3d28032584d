/**
 * @file grid.h
 * @brief A table of texts, printed as Markdown with aligned columns.
 */
#ifndef BENCH_GRID_H
#define BENCH_GRID_H

#include <stdio.h>

/** Limits of a table. */
enum { GRID_COLUMNS = 20, GRID_CELL = 72 };

/** A table. */
typedef struct grid {
    char (*cell)[GRID_COLUMNS][GRID_CELL]; /**< rows of cells, the heading first */
    int rows;                              /**< how many, the heading included */
    int capacity;                          /**< rows there is memory for */
    int columns;                           /**< of the longest row */
    int next_column;                       /**< the cell that grid_cell() fills next */
} grid;

/** Begin a row. Without memory the row is dropped. */
void grid_row(grid *g);

/** Fill in the next cell of the last row, printf style. */
void grid_cell(grid *g, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Begin a row of texts, ended by NULL: the heading. */
void grid_heading(grid *g, const char *const *texts);

/** Fill in a number with three significant figures; "-" unless it is above 0. */
void grid_number(grid *g, double x);

/** Fill in a ratio and its spread, "2.34x (2.1..2.5)"; "-" unless it is above 0. */
void grid_ratio(grid *g, double ratio, double low, double high);

/** Print the table, numbers right-aligned, and free it. */
void grid_print(grid *g, FILE *out);

#endif
