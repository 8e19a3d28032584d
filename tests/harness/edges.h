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

/** Change the inputs of a bfloat16 stage, before they are rounded, so that a compressed key rounded
 * to bfloat16 moves no large score. Only data=large is changed.
 *  @param c   names the kind of data
 *  @param in  every input of the case, changed in place */
void edge_values_bf16(const test_case *c, nsa_tensors *in);

/** @return an error if the kind of data needs scores that this config cannot give. */
nsa_status edge_check(const test_case *c);

#endif
