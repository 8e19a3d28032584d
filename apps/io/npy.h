/**
 * @file npy.h
 * @brief Tensors as .npy files: version 1.0, C order, little-endian float32, float64 or int32, one
 * to three dimensions. Anything else is an error.
 */
#ifndef NPY_H
#define NPY_H

#include "nsa.h"

/** Read a tensor from memory, as npy_read() does from a file.
 *  @param bytes  the whole file; never read past `n`
 *  @param n      how many bytes there are
 *  @param label  the file's name in errors
 *  @param[out] t for npy_free(); absent (NSA_NONE) on any error
 *  @return NSA_ERR_INPUT if the bytes break a rule of the format, NSA_ERR_MEMORY */
nsa_status npy_parse(const unsigned char *bytes, size_t n, const char *label, nsa_tensor *t);

/** Read a tensor from a file. Memory is allocated only after the header agrees with the file's
 * size.
 *  @param path   a regular file
 *  @param[out] t for npy_free(); absent (NSA_NONE) on any error
 *  @return NSA_ERR_IO if the file cannot be read, else as npy_parse() */
nsa_status npy_read(const char *path, nsa_tensor *t);

/** Write a tensor; the data starts at a multiple of 64 bytes. A file that could not be written
 * whole is removed.
 *  @param path  created, or replaced
 *  @param t     one to three dimensions; a dimension may be 0
 *  @return NSA_ERR_IO, or NSA_ERR_INPUT for a tensor the format cannot hold */
nsa_status npy_write(const char *path, const nsa_tensor *t);

/** Free the data and make the tensor absent; an absent tensor stays so.
 *  @param t  from npy_read() or npy_parse() */
void npy_free(nsa_tensor *t);

/** The name of a file in errors: only the end of a long path, so that the rest of the error is not
 * cut off.
 *  @param label  a path
 *  @return a pointer into `label`, at most 200 characters from its end */
const char *npy_label(const char *label);

#endif
