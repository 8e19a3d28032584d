/**
 * @file edges.h
 * @brief Inputs at the edges of the range in which results are promised to be finite and close.
 */
#ifndef HARNESS_EDGES_H
#define HARNESS_EDGES_H

#include "harness/case.h"

/** Turn a tensor of normal values into what the case's kind of data asks for; most stay as they
 * are.
 *  @param state  of the case's random numbers */
void edge_values(const test_case *c, nsa_id id, uint64_t *state, nsa_tensor *t);

/** @return an error if the kind of data promises scores that this config cannot have. */
nsa_status edge_check(const test_case *c);

#endif
