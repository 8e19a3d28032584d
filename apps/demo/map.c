/** @file map.c
 *  @brief The large plot: keys to the right, queries downwards, a cell for a block. */
#include "demo/map.h"

#include <inttypes.h>
#include <stdlib.h>

const demo_colours demo_colour = {
    .paper = "#ffffff",
    .ink = "#1d2733",
    .faint = "#5b6775",
    .triangle = "#e8edf4",
    .window = "#ffd58a",
    .border = "#e09000",
    .shade = {"#a9cbea", "#5f9fd6", "#1f67b1", "#08306b"},
    .forced = "#c2410c",
    .planted = "#b0127b",
};

/* ------------------------------------------------------------------ counting */

static int is_forced(const nsa_config *c, int64_t block, int64_t own_block) {
    return block < c->slc_init || block > own_block - c->slc_local;
}

/* Count the cells with freely selected blocks of one query, each cell once. The list is ascending,
 * so a cell's blocks are consecutive. */
static void count_query(const demo_map *map, const int32_t *idx, int64_t own_block, float *row) {
    const nsa_config *c = map->cfg;
    int64_t last = -1;
    for (int64_t i = 0; i < c->slc_count && idx[i] >= 0; i++) {
        int64_t cell = idx[i] / map->per_cell;
        if (is_forced(c, idx[i], own_block) || cell == last || cell >= map->cells)
            continue;
        row[cell] += 1;
        last = cell;
    }
}

nsa_status demo_map_count(demo_map *map) {
    const nsa_config *c = map->cfg;
    int64_t J = (c->seq_len + c->slc_block - 1) / c->slc_block;
    map->per_cell = (J + MAP_CELLS - 1) / MAP_CELLS;
    map->cells = (J + map->per_cell - 1) / map->per_cell;
    /* Half units a cell: integer pixels when the picture is drawn at twice its size. */
    const int64_t half_units = 2 * 820 / map->cells;
    map->side = (double)half_units / 2 * (double)map->cells;
    map->share = calloc((size_t)(map->cells * map->cells), sizeof *map->share);
    float *queries = calloc((size_t)map->cells, sizeof *queries);
    if (!map->share || !queries) {
        free(queries);
        demo_map_free(map);
        return nsa_fail(NSA_ERR_MEMORY, "no memory for the map");
    }
    for (int64_t i = 0; i < map->run->R * c->kv_heads; i++) {
        int64_t own_block = map->run->row[i / c->kv_heads] / c->slc_block,
                y = own_block / map->per_cell;
        count_query(map, map->run->block_idx + i * c->slc_count, own_block,
                    map->share + y * map->cells);
        queries[y] += 1;
    }
    for (int64_t i = 0; i < map->cells * map->cells; i++)
        map->share[i] /= queries[i / map->cells] > 0 ? queries[i / map->cells] : 1;
    free(queries);
    return NSA_OK;
}

void demo_map_free(demo_map *map) {
    free(map->share);
    map->share = NULL;
}

/* ------------------------------------------------------------------- drawing */

/* 0 for a cell that was never selected, else 1 + its shade; the legend has the same bounds. */
static int shade_of(float share) {
    return !(share > 0) ? 0 : share < 0.125f ? 1 : share < 0.375f ? 2 : share < 0.75f ? 3 : 4;
}

/* One path for each shade, one stroke for each run of equal cells: ten times smaller than
 * rectangles. */
static void draw_free(const demo_map *map, FILE *out) {
    for (int shade = 1; shade <= MAP_SHADES; shade++) {
        fprintf(out, "<path stroke=\"%s\" d=\"", demo_colour.shade[shade - 1]);
        for (int64_t y = 0; y < map->cells; y++) {
            const float *row = map->share + y * map->cells;
            for (int64_t x = 0, end; x < map->cells; x = end) {
                for (end = x + 1; end < map->cells && shade_of(row[end]) == shade_of(row[x]);)
                    end++;
                if (shade_of(row[x]) == shade)
                    fprintf(out, "M%" PRId64 " %" PRId64 "h%" PRId64, x, y, end - x);
            }
        }
        fprintf(out, "\"/>\n");
    }
}

/* The forced blocks follow from the config alone: the first blocks, and the last before the
 * query. */
static void draw_forced(const demo_map *map, FILE *out) {
    const nsa_config *c = map->cfg;
    fprintf(out, "<path stroke=\"%s\" d=\"", demo_colour.forced);
    for (int64_t y = 0; y < map->cells; y++) {
        int64_t local = (y * map->per_cell - c->slc_local + 1) / map->per_cell;
        int64_t init = (c->slc_init + map->per_cell - 1) / map->per_cell;
        if (local < 0)
            local = 0;
        if (init > y + 1)
            init = y + 1;
        if (init > 0)
            fprintf(out, "M0 %" PRId64 "h%" PRId64, y, init);
        fprintf(out, "M%" PRId64 " %" PRId64 "h%" PRId64, local, y, y + 1 - local);
    }
    fprintf(out, "\"/>\n");
}

/* Ticks in tokens: 1, 2 or 5 times a power of ten, six to nine of them. */
static int64_t tick_step(int64_t T) {
    int64_t step = 100;
    for (int i = 0; T / step > 9; i++)
        step = i % 3 == 1 ? step / 2 * 5 : step * 2;
    return step;
}

static void draw_axes(const demo_map *map, double unit, FILE *out) {
    double S = map->side;
    int64_t T = map->text->T, step = tick_step(T);
    fprintf(out, "<g stroke=\"%s\" fill=\"none\"><path d=\"M0 0V%g H%g\"/><path d=\"",
            demo_colour.ink, S, S);
    for (int64_t t = 0; t < T; t += step)
        fprintf(out, "M%g %gv6M0 %gh-6", (double)t * unit, S, (double)t * unit);
    fprintf(out, "\"/></g>\n<g fill=\"%s\" font-size=\"15\">\n", demo_colour.ink);
    for (int64_t t = 0; t < T; t += step) {
        fprintf(out, "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">%" PRId64 "</text>",
                (double)t * unit, S + 22, t);
        fprintf(out, "<text x=\"-10\" y=\"%g\" text-anchor=\"end\">%" PRId64 "</text>\n",
                (double)t * unit + 5, t);
    }
    fprintf(out,
            "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\" font-size=\"17\">key position s, in "
            "tokens: what is read</text>\n",
            S / 2, S + 50);
    fprintf(out,
            "<text transform=\"translate(-72 %g) rotate(-90)\" text-anchor=\"middle\" "
            "font-size=\"17\">query position t, in tokens: who reads</text></g>\n",
            S / 2);
}

/* Mark where the queries of the second occurrence meet the keys of the first: they should be
 * selected. */
static void draw_planted(const demo_map *map, double unit, FILE *out) {
    const demo_text *text = map->text;
    double half = (double)text->length / 2, S = map->side;
    double x = ((double)text->first + half) * unit, y = ((double)text->second + half) * unit;
    double x0 = (double)text->first * unit, x1 = x0 + 2 * half * unit;
    double y0 = (double)text->second * unit, y1 = y0 + 2 * half * unit;
    fprintf(out,
            "<path d=\"M%g %gV%gM%g %gV%gM0 %gH%gM0 %gH%g\" stroke=\"%s\" fill=\"none\" "
            "stroke-width=\"1.2\" stroke-dasharray=\"7 4\"/>\n",
            x0, x0, S, x1, x1, S, y0, y0, y1, y1, demo_colour.planted);
    fprintf(out,
            "<circle cx=\"%g\" cy=\"%g\" r=\"%g\" fill=\"none\" stroke=\"%s\" "
            "stroke-width=\"3\"/>\n",
            x, y, half * unit + 10, demo_colour.planted);
    /* Labels go into the half above the diagonal, which is empty. */
    fprintf(out, "<g fill=\"%s\" font-size=\"15\" font-weight=\"bold\">\n", demo_colour.planted);
    fprintf(out,
            "<path d=\"M%g %gL%g %g\" stroke=\"%s\" stroke-width=\"1.2\"/>"
            "<text x=\"%g\" y=\"%g\">the passage stands here:</text>"
            "<text x=\"%g\" y=\"%g\">tokens %" PRId64 " to %" PRId64 "</text>\n",
            x, x0 - 2, x + 12, x0 - 26, demo_colour.planted, x + 16, x0 - 38, x + 16, x0 - 20,
            text->first, text->first + text->length - 1);
    fprintf(out,
            "<text x=\"%g\" y=\"%g\" text-anchor=\"end\">and again here:</text>"
            "<text x=\"%g\" y=\"%g\" text-anchor=\"end\">tokens %" PRId64 " to %" PRId64 "</text>"
            "<path d=\"M%g %gL%g %g\" stroke=\"%s\" stroke-width=\"1.2\"/></g>\n",
            S, 0.64 * S - 18, S, 0.64 * S, text->second, text->second + text->length - 1, S - 70,
            0.64 * S + 8, y1, y0 - 2, demo_colour.planted);
}

/* Escape stage names: they are file names and may contain anything. */
static void put_escaped(const char *text, FILE *out) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '<' || c == '>' || c == '&' || c < ' ' || c > 126)
            fprintf(out, c < ' ' || c > 126 ? "?" : "&#%d;", c);
        else
            fputc(c, out);
    }
}

static void draw_head(const demo_map *map, double width, double height, FILE *out) {
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" "
            "height=\"%g\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n",
            width, height, width, height);
    fprintf(out, "<title>Block map of Native Sparse Attention</title>\n");
    /* Draw a background, so that the picture does not depend on the page. */
    fprintf(out, "<rect width=\"100%%\" height=\"100%%\" fill=\"%s\"/>\n", demo_colour.paper);
    fprintf(out, "<g fill=\"%s\"><text x=\"%d\" y=\"40\" font-size=\"25\" font-weight=\"bold\">",
            demo_colour.ink, MAP_LEFT);
    fprintf(out,
            "Which blocks of a text each query reads</text>\n<text x=\"%d\" y=\"70\" "
            "font-size=\"16\" fill=\"%s\">%" PRId64 " tokens in blocks of %" PRId64 ", %" PRId64
            " read by a query; %s queries, stage ",
            MAP_LEFT, demo_colour.faint, map->text->T, map->cfg->slc_block, map->cfg->slc_count,
            map->run->R == map->text->T ? "all" : "some");
    put_escaped(map->stage, out);
    fprintf(out, "; nothing is trained</text></g>\n");
}

void demo_map_draw(const demo_map *map, FILE *out) {
    const nsa_config *c = map->cfg;
    double S = map->side, cell = S / (double)map->cells;
    double unit = cell / (double)(map->per_cell * c->slc_block); /* picture units a token */
    double end = (double)c->seq_len * unit, w = (double)c->window * unit;
    draw_head(map, MAP_LEFT + S + 48 + MAP_PANEL, MAP_TOP + S + 74, out);
    fprintf(out, "<g transform=\"translate(%d %d)\">\n", MAP_LEFT, MAP_TOP);
    /* A query reads every earlier compressed token, and the last w tokens. */
    fprintf(out, "<path fill=\"%s\" d=\"M0 0L%g %gH0z\"/>\n", demo_colour.triangle, end, end);
    fprintf(out, "<path fill=\"%s\" d=\"M0 0L%g %gH%gL0 %gz\"/>\n", demo_colour.window, end, end,
            end > w ? end - w : 0, w < end ? w : end);
    /* In units of cells, strokes one cell thick, centred in their row. */
    fprintf(out,
            "<g transform=\"translate(0 %g) scale(%g)\" fill=\"none\" stroke-width=\"1\" "
            "shape-rendering=\"crispEdges\">\n",
            cell / 2, cell);
    draw_free(map, out);
    draw_forced(map, out);
    fprintf(out, "</g>\n");
    /* Draw the window's boundary over the selected blocks. */
    if (w < end)
        fprintf(out, "<path d=\"M0 %gL%g %g\" stroke=\"%s\" stroke-width=\"1.5\"/>\n", w, end - w,
                end, demo_colour.border);
    draw_planted(map, unit, out);
    draw_axes(map, unit, out);
    fprintf(out, "</g>\n");
    demo_map_panel(map, out);
    fprintf(out, "</svg>\n");
}
