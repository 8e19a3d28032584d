/**
 * @file edges.h
 * @brief Inputs at the edges of the range in which results are promised to be finite and close.
 */
#ifndef HARNESS_EDGES_H
#define HARNESS_EDGES_H

#include "harness/case.h"

/** Change a tensor of normal values as the case's kind of data requires; most are unchanged.
 *  @param c      names the kind of data
 *  @param id     of the tensor
 *  @param state  the case's random state
 *  @param t      its values, changed in place */
void edge_values(const test_case *c, nsa_id id, uint64_t *state, nsa_tensor *t);

/** @return an error if the kind of data needs scores that this config cannot give. */
nsa_status edge_check(const test_case *c);

#endif
