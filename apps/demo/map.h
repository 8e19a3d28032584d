/**
 * @file map.h
 * @brief The block map: a picture of the blocks that each query read.
 */
#ifndef DEMO_MAP_H
#define DEMO_MAP_H

#include "demo/demo_run.h"

#include <stdio.h>

enum {
    MAP_LEFT = 96,    /**< left edge of the large plot, in the picture's units */
    MAP_TOP = 96,     /**< its upper edge */
    MAP_PANEL = 388,  /**< width of the panel on the right */
    MAP_CELLS = 410,  /**< maximum cells a side; with more blocks, several share a cell */
    MAP_SHADES = 4,   /**< shades of freely selected blocks */
    ZOOM_BLOCKS = 14, /**< blocks across the enlarged part */
    ZOOM_CELL = 24    /**< their width */
};

/** A map to draw. */
typedef struct demo_map {
    const demo_text *text; /**< with the planted passage */
    const nsa_config *cfg; /**< the config */
    const demo_run *run;   /**< whose selections are drawn */
    const char *stage;     /**< of which stage */
    int64_t per_cell;      /**< blocks a cell, 1 for texts of ordinary length */
    int64_t cells;         /**< cells a side */
    double side;           /**< side of the plot, in the picture's units */
    float *share; /**< [cells,cells] share of a row's queries that selected a block there */
} demo_map;

/** Count the selections.
 *  @param map  text, cfg, run and stage are set; the rest is filled in for demo_map_free()
 *  @return NSA_OK or NSA_ERR_MEMORY */
nsa_status demo_map_count(demo_map *map);

/** Write the picture as SVG; the caller checks ferror().
 *  @param map  counted
 *  @param out  where to write */
void demo_map_draw(const demo_map *map, FILE *out);

/** Write the panel on the right: legend and enlarged part.
 *  @param map  counted
 *  @param out  where to write */
void demo_map_panel(const demo_map *map, FILE *out);

/** Free the counts.
 *  @param map  of demo_map_count() */
void demo_map_free(demo_map *map);

/** Colours of the picture, shared by plot and legend. */
typedef struct demo_colours {
    const char *paper;             /**< background */
    const char *ink;               /**< text and axes */
    const char *faint;             /**< minor text */
    const char *triangle;          /**< compressed tokens */
    const char *window;            /**< sliding window */
    const char *border;            /**< its boundary */
    const char *shade[MAP_SHADES]; /**< freely selected blocks, rare to frequent */
    const char *forced;            /**< forced blocks */
    const char *planted;           /**< the planted passage */
} demo_colours;

/** The colours; they also differ in lightness, for colour-blind readers. */
extern const demo_colours demo_colour;

#endif
