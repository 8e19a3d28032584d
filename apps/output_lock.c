/** @file output_lock.c
 *  @brief The lock beside an output folder, and removing what killed runs left. On a file system
 * without locks, two runs into one folder are not detected. */
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

/* 1 if the path still names the open file: the previous owner of the lock removes it. */
static int is_same_file(const char *path, int fd) {
    struct stat a, b;
    return !stat(path, &a) && !fstat(fd, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* @return NSA_OK with the lock or on a disk without locks, NSA_ERR_STATE if another run has it */
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
    enum { TRIES = 100 }; /* a try fails if a run has just ended and removed its lock file */
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
                  : nsa_fail(NSA_ERR_STATE, "output %s: other runs keep taking the lock",
                             npy_label(dir));
}

void output_unlock(output_lock *lock) {
    if (!lock->path[0])
        return;
    unlink(lock->path); /* before unlocking: afterwards it may be another run's */
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

/* The process id at the end of a partial folder's name; 0 if there is none. */
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
