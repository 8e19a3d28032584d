/**
 * @file file.h
 * @brief Opening regular files for reading (a pipe would block, a device may never end); replacing
 * files as a whole.
 */
#ifndef FILE_H
#define FILE_H

#include "nsa.h"

#include <stdio.h>
#include <sys/stat.h>

/** Open a regular file for reading; anything else is refused without opening it.
 *  @param path     the file, or a link to it
 *  @param[out] fd  for close(); -1 on any error
 *  @param[out] st  the result of fstat()
 *  @return NSA_ERR_IO naming the file and what is wrong with it */
nsa_status file_open(const char *path, int *fd, struct stat *st);

/** The same as a stream.
 *  @param path       the file, or a link to it
 *  @param[out] file  for fclose(); NULL on any error
 *  @return as file_open() */
nsa_status file_stream(const char *path, FILE **file);

/** Read a regular file, its first `max` bytes if it has more.
 *  @param path       the file, or a link to it
 *  @param max        bytes
 *  @param[out] text  for free(), not ended by a NUL; NULL on any error
 *  @param[out] n     bytes read
 *  @return as file_open(), or NSA_ERR_MEMORY */
nsa_status file_read(const char *path, size_t max, char **text, size_t *n);

/** Write a text and a newline to a file, whole or not at all: a full disk leaves the old file.
 *  @return NSA_ERR_IO naming the file and what is wrong with it */
nsa_status file_replace(const char *path, const char *text);

#endif
