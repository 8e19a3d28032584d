/** @file map_panel.c
 *  @brief The panel beside the large plot: the legend, and the planted passage enlarged. */
#include "demo/map.h"

#include <inttypes.h>

/* The enlargement is lower beside a small plot, to leave space for the legend. */
static double zoom_height(const demo_map *map) {
    double available = map->side - 370;
    return available < 330 ? available : 330;
}

/** The part that is enlarged. */
typedef struct zoom {
    int64_t block0; /* first block across */
    int64_t t0;     /* first query down */
    int64_t rows;   /* queries down */
    double tall;    /* picture units a query */
} zoom;

/* -------------------------------------------------------------------- legend */

static void legend_line(const char *colour, const char *text, int y, FILE *out) {
    fprintf(out,
            "<rect x=\"0\" y=\"%d\" width=\"26\" height=\"16\" fill=\"%s\"/>"
            "<text x=\"38\" y=\"%d\">%s</text>\n",
            y, colour, y + 14, text);
}

static void draw_legend(const demo_map *map, FILE *out) {
    static const char *const shares[MAP_SHADES] = {"by fewer than 1/8 of a row's queries",
                                                   "by 1/8 to 3/8", "by 3/8 to 3/4",
                                                   "by 3/4 and more"};
    char text[96];
    int y = 0;
    fprintf(out, "<g font-size=\"15.5\" fill=\"%s\">\n", demo_colour.ink);
    snprintf(text, sizeof text, "compressed: a summary every %" PRId64 " tokens",
             map->cfg->cmp_stride);
    legend_line(demo_colour.triangle, text, y, out);
    snprintf(text, sizeof text, "window: the last %" PRId64 " tokens", map->cfg->window);
    legend_line(demo_colour.window, text, y += 25, out);
    snprintf(text, sizeof text, "forced: first %" PRId64 ", last %" PRId64 " block%s",
             map->cfg->slc_init, map->cfg->slc_local, map->cfg->slc_local == 1 ? "" : "s");
    legend_line(demo_colour.forced, text, y += 25, out);
    fprintf(out, "<text x=\"0\" y=\"%d\">freely selected block:</text>\n", (y += 25) + 14);
    for (int i = 0; i < MAP_SHADES; i++)
        legend_line(demo_colour.shade[i], shares[i], y += 25, out);
    fprintf(out,
            "<path d=\"M0 %dh26\" stroke=\"%s\" stroke-width=\"2\" stroke-dasharray=\"7 4\"/>"
            "<text x=\"38\" y=\"%d\">the planted passage</text></g>\n",
            y + 33, demo_colour.planted, y + 39);
}

/* A note between legend and enlargement: what to look at. */
static void draw_guide(const demo_map *map, FILE *out) {
    int64_t block = map->cfg->slc_block;
    fprintf(out,
            "<g font-size=\"15\" fill=\"%s\"><text y=\"254\">A row is %" PRId64
            " queries; left of the diagonal</text>\n",
            demo_colour.faint, block * map->per_cell);
    fprintf(out,
            "<text y=\"274\">lies their past. The ring: do they choose, out</text>\n"
            "<text y=\"294\">of %" PRId64 " blocks, those in which the same</text>\n"
            "<text y=\"314\">words were read before?</text></g>\n",
            map->text->second / block + 1);
}

/* ---------------------------------------------------------------- enlargement */

/* 0 not selected, 1 free, 2 forced, for one query of the run; all groups together. */
static int selection_kind(const demo_map *map, int64_t r, int64_t block) {
    const nsa_config *c = map->cfg;
    int64_t own_block = map->run->row[r] / c->slc_block;
    for (int64_t i = 0; i < c->kv_heads * c->slc_count; i++) {
        if (map->run->block_idx[r * c->kv_heads * c->slc_count + i] == block)
            return block < c->slc_init || block > own_block - c->slc_local ? 2 : 1;
    }
    return 0;
}

/* One path for all selected blocks of a kind; each block is a column, runs of queries are
 * merged. */
static void zoom_selected(const demo_map *map, const zoom *z, int kind, FILE *out) {
    fprintf(out, "<path fill=\"%s\" d=\"", kind == 2 ? demo_colour.forced : demo_colour.shade[2]);
    for (int64_t x = 0; x < ZOOM_BLOCKS; x++) {
        int64_t start = -1;
        for (int64_t y = 0; y <= z->rows; y++) {
            int64_t r = y < z->rows ? demo_run_find(map->run, z->t0 + y) : -1;
            int hit = r >= 0 && selection_kind(map, r, z->block0 + x) == kind;
            if (hit && start < 0)
                start = y;
            if (hit || start < 0)
                continue;
            fprintf(out, "M%d %gh%dV%gh%dz", (int)x * ZOOM_CELL + 1, (double)start * z->tall,
                    ZOOM_CELL - 2, (double)y * z->tall, 2 - ZOOM_CELL);
            start = -1;
        }
    }
    fprintf(out, "\"/>\n");
}

/* A line where query t meets its twin in the first occurrence: selected blocks should follow it. */
static void zoom_twin(const demo_map *map, const zoom *z, FILE *out) {
    const demo_text *text = map->text;
    double per_token = ZOOM_CELL / (double)map->cfg->slc_block;
    double x = (double)(text->first - z->block0 * map->cfg->slc_block) * per_token;
    double y = (double)(text->second - z->t0) * z->tall;
    double wide = (double)text->length * per_token, high = (double)text->length * z->tall;
    int W = ZOOM_BLOCKS * ZOOM_CELL;
    fprintf(out,
            "<path d=\"M%g 0V%gM%g 0V%gM0 %gH%dM0 %gH%d\" stroke=\"%s\" stroke-width=\"1.2\" "
            "stroke-dasharray=\"7 4\"/>\n",
            x, (double)z->rows * z->tall, x + wide, (double)z->rows * z->tall, y, W, y + high, W,
            demo_colour.planted);
    fprintf(out, "<path d=\"M%g %gl%g %g\" stroke=\"%s\" stroke-width=\"2.5\"/>\n", x, y, wide,
            high, demo_colour.planted);
}

static void zoom_axes(const demo_map *map, const zoom *z, FILE *out) {
    double H = (double)z->rows * z->tall;
    int64_t block = map->cfg->slc_block;
    fprintf(out, "<g font-size=\"13\" fill=\"%s\">\n", demo_colour.ink);
    for (int64_t x = 0; x <= ZOOM_BLOCKS; x += 4)
        fprintf(out,
                "<path d=\"M%d %gv5\" stroke=\"%s\"/><text x=\"%d\" y=\"%g\" "
                "text-anchor=\"middle\">%" PRId64 "</text>\n",
                (int)x * ZOOM_CELL, H, demo_colour.ink, (int)x * ZOOM_CELL, H + 18,
                (z->block0 + x) * block);
    for (int64_t y = (100 - z->t0 % 100) % 100; y < z->rows; y += 100)
        fprintf(out,
                "<path d=\"M0 %gh-5\" stroke=\"%s\"/><text x=\"-7\" y=\"%g\" "
                "text-anchor=\"end\">%" PRId64 "</text>\n",
                (double)y * z->tall, demo_colour.ink, (double)y * z->tall + 4, z->t0 + y);
    fprintf(out,
            "<text x=\"%d\" y=\"%g\" text-anchor=\"middle\">key position; a column is one block"
            "</text></g>\n",
            ZOOM_BLOCKS * ZOOM_CELL / 2, H + 38);
}

static void draw_zoom(const demo_map *map, FILE *out) {
    const demo_text *text = map->text;
    int64_t margin = 64;
    zoom z = {.block0 = text->first / map->cfg->slc_block - 4,
              .t0 = text->second - margin,
              .rows = text->length + 2 * margin};
    if (z.block0 < 0)
        z.block0 = 0;
    if (z.t0 + z.rows > text->T)
        z.rows = text->T - z.t0;
    z.tall = zoom_height(map) / (double)z.rows;
    fprintf(out,
            "<text x=\"-46\" y=\"-32\" font-size=\"16\" font-weight=\"bold\" fill=\"%s\">The ring, "
            "enlarged: a row is one query</text>\n"
            "<text x=\"-46\" y=\"-11\" font-size=\"14\" fill=\"%s\">solid line: the place a query "
            "has seen before</text>\n",
            demo_colour.ink, demo_colour.faint);
    fprintf(out, "<rect width=\"%d\" height=\"%g\" fill=\"%s\"/>\n", ZOOM_BLOCKS * ZOOM_CELL,
            (double)z.rows * z.tall, demo_colour.triangle);
    zoom_selected(map, &z, 1, out);
    zoom_selected(map, &z, 2, out);
    zoom_twin(map, &z, out);
    fprintf(out, "<rect width=\"%d\" height=\"%g\" fill=\"none\" stroke=\"%s\"/>\n",
            ZOOM_BLOCKS * ZOOM_CELL, (double)z.rows * z.tall, demo_colour.ink);
    zoom_axes(map, &z, out);
}

void demo_map_panel(const demo_map *map, FILE *out) {
    double x = MAP_LEFT + map->side + 40;
    fprintf(out, "<g transform=\"translate(%g %d)\">\n", x, MAP_TOP);
    draw_legend(map, out);
    draw_guide(map, out);
    /* Align the lower edges of enlargement and plot. */
    fprintf(out, "</g>\n<g transform=\"translate(%g %g)\">\n", x + 46,
            MAP_TOP + map->side - zoom_height(map));
    draw_zoom(map, out);
    fprintf(out, "</g>\n");
}
