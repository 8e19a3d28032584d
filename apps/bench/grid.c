/** @file grid.c
 *  @brief A table of texts. */
#include "bench/grid.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void grid_row(grid *g) {
    if (g->rows == g->capacity) {
        int capacity = g->capacity ? 2 * g->capacity : 32;
        void *more = realloc(g->cell, (size_t)capacity * sizeof *g->cell);
        if (!more)
            return;
        g->cell = more;
        g->capacity = capacity;
    }
    memset(g->cell[g->rows++], 0, sizeof *g->cell);
    g->next_column = 0;
}

void grid_cell(grid *g, const char *format, ...) {
    va_list args;
    if (!g->rows || g->next_column == GRID_COLUMNS)
        return;
    va_start(args, format);
    vsnprintf(g->cell[g->rows - 1][g->next_column++], GRID_CELL, format, args);
    va_end(args);
    g->columns = g->next_column > g->columns ? g->next_column : g->columns;
}

void grid_heading(grid *g, const char *const *texts) {
    grid_row(g);
    for (; *texts; texts++)
        grid_cell(g, "%s", *texts);
}

/* Three significant figures: 0.0123, 1.23, 12.3, 123, 1234. */
void grid_number(grid *g, double x) {
    if (!(x > 0) || x > 1e300) /* unknown, or divided by a time of 0 */
        grid_cell(g, "-");
    else if (x < 0.0995)
        grid_cell(g, "%.2g", x);
    else
        grid_cell(g, "%.*f", x < 9.95 ? 2 : x < 99.5 ? 1 : 0, x);
}

/* The spread has as many decimals as the ratio. */
void grid_ratio(grid *g, double ratio, double low, double high) {
    int digits = ratio < 0.0995 ? 4 : ratio < 0.995 ? 3 : ratio < 9.95 ? 2 : ratio < 99.5 ? 1 : 0;
    if (ratio > 0)
        grid_cell(g, "%.*fx (%.*f..%.*f)", digits, ratio, digits, low, digits, high);
    else
        grid_cell(g, "-");
}

/* A column is right-aligned if its first filled cell is a number. Names of stages begin with a
 * digit too, but have an underscore. */
static int is_number(const grid *g, int column) {
    for (int r = 1; r < g->rows; r++) {
        const char *text = g->cell[r][column];
        if (text[0] && strcmp(text, "-") != 0)
            return isdigit((unsigned char)text[0]) && !strchr(text, '_');
    }
    return 0;
}

void grid_print(grid *g, FILE *out) {
    int width[GRID_COLUMNS] = {0};
    for (int r = 0; r < g->rows; r++) {
        for (int c = 0; c < g->columns; c++) {
            int length = (int)strlen(g->cell[r][c]);
            width[c] = length > width[c] ? length : width[c];
        }
    }
    for (int r = 0; r < g->rows; r++) {
        for (int c = 0; c < g->columns; c++)
            fprintf(out, is_number(g, c) ? "| %*s " : "| %-*s ", width[c], g->cell[r][c]);
        fprintf(out, "|\n");
        for (int c = 0; c < g->columns && !r; c++) {
            fputs("|-", out);
            for (int i = 0; i < width[c]; i++)
                fputc('-', out);
            fputc(is_number(g, c) ? ':' : '-', out);
        }
        fputs(r ? "" : "|\n", out);
    }
    free(g->cell);
    *g = (grid){0};
}
