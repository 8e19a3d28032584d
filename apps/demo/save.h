/**
 * @file save.h
 * @brief Files that exist complete or not at all: written as .partial, then renamed.
 */
#ifndef DEMO_SAVE_H
#define DEMO_SAVE_H

#include <limits.h>
#include <stdio.h>

/** A file being written. */
typedef struct demo_file {
    FILE *out;              /**< where to write */
    char path[PATH_MAX];    /**< its name when it is done */
    char partial[PATH_MAX]; /**< its name until then */
} demo_file;

/** Create the folder if necessary (its parent must exist); errors are printed.
 *  @param dir  the folder
 *  @return an exit_code */
int demo_make_folder(const char *dir);

/** Start a file; errors are printed.
 *  @param dir        the folder
 *  @param name       the file's name in it
 *  @param[out] file  for demo_file_done(), on success
 *  @return an exit_code */
int demo_file_start(const char *dir, const char *name, demo_file *file);

/** Close the file and give it its name; errors are printed and leave nothing behind.
 *  @param file  of demo_file_start()
 *  @return an exit_code */
int demo_file_done(demo_file *file);

/** Draw an SVG file as PNG with rsvg-convert, at twice its size; errors are printed.
 *  @param dir        the folder of both
 *  @param svg        the picture's name
 *  @param png        the name to give to the PNG
 *  @param[out] made  0 if rsvg-convert is not installed, which is no error
 *  @return an exit_code */
int demo_draw_png(const char *dir, const char *svg, const char *png, int *made);

#endif
