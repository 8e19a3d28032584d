/**
 * @file corners.h
 * @brief What the files of build/corners share.
 */
#ifndef CORNERS_H
#define CORNERS_H

#include "nsa_stage.h"

#include <stdio.h>

/** Checks that held so far. */
extern int passed;
/** Checks that did not. */
extern int failed;

/** Count a check, and print one that failed. */
#define CHECK(holds)                                                                               \
    do {                                                                                           \
        if (holds) {                                                                               \
            passed++;                                                                              \
        } else {                                                                                   \
            printf("FAIL %s:%d: %s; last error: %s\n", __FILE__, __LINE__, #holds,                 \
                   nsa_last_error());                                                              \
            failed++;                                                                              \
        }                                                                                          \
    } while (0)

/** Rounding to bfloat16 and back. */
void check_bfloat16(void);

/** Places that are none. */
void check_places(void);

/** Which loads and steps count as the same as the one before. */
void check_same(void);

/** What a stage with a device is passed, and when it is asked. */
void check_device(void);

#endif
