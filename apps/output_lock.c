/** @file output_lock.c
 *  @brief The lock beside an output folder, and the leftovers of runs that were killed. Where the
 * file system has no locks, two runs into one folder are not kept apart. */
#include "output_lock.h"
#include "io/file.h"
#include "io/npy.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------------ lock */

/* Whether the path still leads to the open file: whoever had the lock before us removed it. */
static int is_same_file(const char *path, int fd) {
    struct stat a, b;
    return !stat(path, &a) && !fstat(fd, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* @return NSA_OK with the lock or on a disk that has no locks, NSA_ERR_STATE if another has it */
static nsa_status lock_file(int fd, const char *dir) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (!fcntl(fd, F_SETLK, &whole) || (errno != EAGAIN && errno != EACCES))
        return NSA_OK;
    if (!fcntl(fd, F_GETLK, &whole) && whole.l_type != F_UNLCK && whole.l_pid > 0)
        return nsa_fail(NSA_ERR_STATE, "output %s: another run, process %ld, is writing there",
                        npy_label(dir), (long)whole.l_pid);
    return nsa_fail(NSA_ERR_STATE, "output %s: another run is writing there", npy_label(dir));
}

nsa_status output_lock_acquire(output_lock *lock, const char *stem, const char *dir) {
    enum { TRIES = 100 }; /* each but the last met a run that had just ended */
    nsa_status status = NSA_OK;
    lock->path[0] = 0;
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%slock", stem) >= (int)sizeof path)
        return nsa_fail(NSA_ERR_IO, "output %s: the path is too long", npy_label(dir));
    for (int i = 0; i < TRIES && !status; i++) {
        lock->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
        if (lock->fd < 0)
            return nsa_fail(NSA_ERR_IO, "output %s: cannot make %s: %s", npy_label(dir),
                            npy_label(path), strerror(errno));
        status = lock_file(lock->fd, dir);
        if (!status && is_same_file(path, lock->fd)) {
            memcpy(lock->path, path, sizeof path);
            return NSA_OK;
        }
        close(lock->fd);
    }
    return status ? status
                  : nsa_fail(NSA_ERR_STATE, "output %s: other runs come and go", npy_label(dir));
}

void output_unlock(output_lock *lock) {
    if (!lock->path[0])
        return;
    unlink(lock->path); /* before the lock goes: afterwards it might be another run's */
    close(lock->fd);
    lock->path[0] = 0;
}

/* ------------------------------------------------------------------- leftovers */

int output_path(char path[PATH_MAX], const char *folder, const char *prefix, int id) {
    const char *const parts[] = {folder, "/", prefix, nsa_name((nsa_id)id), ".npy"};
    size_t used = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const size_t n = strlen(parts[i]);
        if (used + n >= PATH_MAX)
            return -1;
        memcpy(path + used, parts[i], n);
        used += n;
    }
    path[used] = 0;
    return 0;
}

void output_remove_partial(const char *partial) {
    char path[PATH_MAX];
    for (int id = NSA_BLOCK_IDX; id < NSA_ID_COUNT; id++) {
        if (!output_path(path, partial, "", id))
            unlink(path);
        if (!output_path(path, partial, "old-", id))
            unlink(path);
    }
    rmdir(partial);
}

/* The process that a partial folder's name ends with; 0 if it is no such name. */
static pid_t owner(const char *file, const char *prefix) {
    const size_t n = strlen(prefix);
    char *end;
    if (strncmp(file, prefix, n) != 0 || !isdigit((unsigned char)file[n]))
        return 0;
    const long number = strtol(file + n, &end, 10);
    return *end || number <= 0 || number > INT_MAX ? 0 : (pid_t)number;
}

static int is_alive(pid_t process) {
    return !kill(process, 0) || errno != ESRCH;
}

void output_clear_leftovers(const char *stem) {
    char folder[PATH_MAX], path[PATH_MAX + NAME_MAX + 2];
    struct stat st;
    snprintf(folder, sizeof folder, "%s", stem);
    char *slash = strrchr(folder, '/');
    const char *prefix = slash ? stem + (slash - folder) + 1 : stem;
    if (slash)
        slash[1] = 0;
    DIR *d = opendir(slash ? folder : ".");
    for (struct dirent *e; d && (e = readdir(d));) {
        const pid_t process = owner(e->d_name, prefix);
        snprintf(path, sizeof path, "%s%s", slash ? folder : "", e->d_name);
        if (process && !is_alive(process) && !lstat(path, &st) && S_ISDIR(st.st_mode))
            output_remove_partial(path);
    }
    if (d)
        closedir(d);
}
