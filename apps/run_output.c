/** @file run_output.c
 *  @brief The output folder of `nsa run`: write to a partial folder, then move results into
 * place. */
#include "run_output.h"
#include "io/npy.h"
#include "on_signal.h"

#include <errno.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEM = PATH_MAX + 16 /* a path and "/.partial-" */ };

static run_output *signalled; /* what to clean up on a signal */

static void tidy_up(void) {
    if (signalled->partial[0])
        output_remove_partial(signalled->partial);
    output_unlock(&signalled->lock);
}

/* ---------------------------------------------------------------------- checks */

/* An error about an output folder. */
static nsa_status bad(const char *dir, const char *what) {
    return nsa_fail(NSA_ERR_IO, "output %s: %s", npy_label(dir), what);
}

/* The folder that contains `path`. */
static void parent_of(const char *path, char parent[PATH_MAX]) {
    snprintf(parent, PATH_MAX, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash)
        snprintf(parent, PATH_MAX, ".");
    else if (slash == parent)
        parent[1] = 0;
    else
        *slash = 0;
}

/* Check an existing folder: it must be writable, and not the input, whose block_idx.npy has the
 * name of a result. */
static nsa_status check_existing(run_output *o, const struct stat *st, const char *input) {
    struct stat other;
    char real[PATH_MAX];
    if (!S_ISDIR(st->st_mode))
        return bad(o->dir, "not a folder");
    if (!stat(input, &other) && other.st_dev == st->st_dev && other.st_ino == st->st_ino)
        return bad(o->dir, "the same folder as --input");
    if (!realpath(o->dir, real)) /* so that ".partial" can be appended to "." and links */
        return bad(o->dir, strerror(errno));
    snprintf(o->dir, sizeof o->dir, "%s", real);
    if (access(o->dir, W_OK | X_OK))
        return bad(o->dir, strerror(errno));
    o->exists = 1;
    o->mode = st->st_mode & 07777;
    return NSA_OK;
}

/* The prefix of partial folders, beside the output folder or in it, and of the lock. */
static const char *stem_of(const run_output *o, int inside, char stem[STEM]) {
    snprintf(stem, STEM, "%s%s.partial-", o->dir, inside ? "/" : "");
    return stem;
}

/* Make the partial folder. An existing one with our process id was left by a killed run. */
static nsa_status make_partial(run_output *o, int inside) {
    char stem[STEM];
    int n =
        snprintf(o->partial, sizeof o->partial, "%s%ld", stem_of(o, inside, stem), (long)getpid());
    for (int i = 0; i < 2 && n < (int)sizeof o->partial; i++) {
        if (!mkdir(o->partial, 0777))
            return NSA_OK;
        if (errno == EEXIST)
            output_remove_partial(o->partial);
    }
    o->partial[0] = 0;
    return nsa_fail(NSA_ERR_IO, "output %s: cannot make a folder %s: %s", npy_label(o->dir),
                    inside ? "in it" : "beside it",
                    n < (int)sizeof o->partial ? strerror(errno) : "the path is too long");
}

/* Choose where the partial folder goes: beside the output folder, or in it if that is a disk of its
 * own. Renaming across disks fails, and only trying shows it: move a folder from beside the output
 * into it. */
static nsa_status choose_partial_dir(run_output *o) {
    char in_it[PATH_MAX + 32];
    nsa_status status = make_partial(o, 0);
    if (o->exists) {
        snprintf(in_it, sizeof in_it, "%s/.partial-%ld", o->dir, (long)getpid());
        if (!status && !rename(o->partial, in_it)) {
            rmdir(in_it);
            return NSA_OK; /* the trial folder is gone */
        }
        if (!status)
            rmdir(o->partial);
        o->inside = 1;
        status = make_partial(o, 1);
    }
    if (!status)
        rmdir(o->partial);
    return status;
}

/* Lock the output, and remove what killed runs left. */
static nsa_status claim_output(run_output *o) {
    char stem[STEM];
    nsa_status status = choose_partial_dir(o);
    o->partial[0] = 0; /* it was a trial; output_add() makes the real one */
    status = status ? status : output_lock_acquire(&o->lock, stem_of(o, o->inside, stem), o->dir);
    if (!status)
        output_clear_leftovers(stem);
    o->broken = status == NSA_ERR_STATE; /* a second run is not a usage error */
    return status;
}

nsa_status output_check(run_output *o, const char *dir, const char *input) {
    struct stat st;
    char parent[PATH_MAX];
    memset(o, 0, sizeof *o);
    size_t n = strlen(dir);
    if (!n || n + 32 > sizeof o->dir)
        return bad(dir, n ? "the path is too long" : "the path is empty");
    snprintf(o->dir, sizeof o->dir, "%s", dir);
    while (n > 1 && o->dir[n - 1] == '/')
        o->dir[--n] = 0;
    nsa_status status = NSA_OK;
    if (!lstat(o->dir, &st)) /* lstat: a dangling link exists, but stat fails */
        status = stat(o->dir, &st) ? bad(o->dir, strerror(errno)) : check_existing(o, &st, input);
    else if (errno != ENOENT)
        status = bad(o->dir, strerror(errno));
    if (status)
        return status;
    parent_of(o->dir, parent);
    if (stat(parent, &st))
        return bad(parent, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return bad(parent, "not a folder");
    signalled = o;
    signals_hold();
    on_signal(tidy_up);
    status = claim_output(o);
    signals_release();
    return status;
}

/* --------------------------------------------------------------------- writing */

static nsa_status file_of(char path[PATH_MAX], const char *folder, const char *prefix, int id) {
    return output_path(path, folder, prefix, id) ? bad(folder, "the path is too long") : NSA_OK;
}

nsa_status output_add(run_output *o, nsa_id id, const nsa_tensor *tensor) {
    char path[PATH_MAX];
    signals_hold();
    nsa_status status = o->partial[0] ? NSA_OK : make_partial(o, o->inside);
    signals_release();
    status = status ? status : file_of(path, o->partial, "", id);
    status = status ? status : npy_write(path, tensor);
    if (!status) {
        o->fresh[id] = 1;
        o->count++;
    }
    o->broken |= status != NSA_OK;
    return status;
}

static void remove_partial(run_output *o) {
    if (o->partial[0])
        output_remove_partial(o->partial);
    o->partial[0] = 0;
}

void output_discard(run_output *o) {
    signals_hold();
    remove_partial(o);
    output_unlock(&o->lock);
    on_signal(NULL);
    signals_release();
}

/* ------------------------------------------------------------------ publishing */

/* An unreadable folder counts as not empty. */
static int is_empty(const char *dir) {
    DIR *d = opendir(dir);
    int entries = 0;
    while (d && readdir(d))
        entries++;
    if (d)
        closedir(d);
    return d && entries == 2; /* "." and ".." */
}

/* 1 if `dir` is the working folder, which must not be replaced under a shell. */
static int is_here(const char *dir) {
    struct stat a, b;
    return !stat(dir, &a) && !stat(".", &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* The order of results: old ones are moved out from the last to the first, new ones in from the
 * first to the last. `out` is last, so that a folder with an out.npy is complete even if the
 * machine stops midway. */
static int result_at(int i) {
    int last = NSA_ID_COUNT - NSA_BLOCK_IDX - 1;
    return i == last ? NSA_OUT : i == 0 ? NSA_BLOCK_IDX : NSA_OUT + i;
}

enum { RESULTS = NSA_ID_COUNT - NSA_BLOCK_IDX };

/* Rename one result between two folders. @return 1 moved, 0 there is none, -1 failed */
static int move(const char *from, const char *from_prefix, const char *to, const char *to_prefix,
                int id) {
    char a[PATH_MAX], b[PATH_MAX];
    struct stat st;
    if (file_of(a, from, from_prefix, id) || file_of(b, to, to_prefix, id))
        return -1;
    if (lstat(a, &st))
        return errno == ENOENT ? 0 : -1;
    if (S_ISDIR(st.st_mode)) { /* not ours to move */
        errno = EISDIR;
        return -1;
    }
    return rename(a, b) ? -1 : 1;
}

/* Move old results out and new ones in; on a failure, move everything back in reverse order. */
static nsa_status swap_files(run_output *o) {
    signed char left[RESULTS] = {0}, arrived[RESULTS] = {0};
    int failed = -1;
    for (int i = RESULTS - 1; i >= 0 && failed < 0; i--) {
        left[i] = (signed char)move(o->dir, "", o->partial, "old-", result_at(i));
        failed = left[i] < 0 ? i : -1;
    }
    for (int i = 0; i < RESULTS && failed < 0; i++) {
        arrived[i] = (signed char)move(o->partial, "", o->dir, "", result_at(i));
        failed = arrived[i] < 0 ? i : -1;
    }
    if (failed < 0)
        return NSA_OK;
    nsa_status status = nsa_fail(NSA_ERR_IO, "output %s/%s.npy: %s", npy_label(o->dir),
                                 nsa_name((nsa_id)result_at(failed)), strerror(errno));
    for (int i = RESULTS - 1; i >= 0; i--) {
        if (arrived[i] == 1)
            move(o->dir, "", o->partial, "", result_at(i));
    }
    for (int i = 0; i < RESULTS; i++) {
        if (left[i] == 1)
            move(o->partial, "old-", o->dir, "", result_at(i));
    }
    return status;
}

/* Publish by one rename of the folder if possible, else file by file. */
static nsa_status publish(run_output *o) {
    int can_rename = !o->exists || (!o->inside && is_empty(o->dir) && !is_here(o->dir));
    if (can_rename && o->exists)
        chmod(o->partial, o->mode);
    /* rename() fails if the folder is no longer empty; then replace single files. */
    if (can_rename && !rename(o->partial, o->dir)) {
        o->partial[0] = 0;
        return NSA_OK;
    }
    if (!o->exists && errno != EEXIST && errno != ENOTEMPTY)
        return bad(o->dir, strerror(errno));
    nsa_status status = swap_files(o);
    if (!status)
        remove_partial(o); /* with the old results in it */
    return status;
}

nsa_status output_publish(run_output *o) {
    signals_hold(); /* a signal must not leave a mix of old and new results */
    nsa_status status = o->partial[0] ? publish(o) : NSA_OK;
    signals_release();
    o->broken |= status != NSA_OK;
    return status;
}
