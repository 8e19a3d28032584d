/** @file run_output.c
 *  @brief The output folder of `nsa run`: written aside, then put in place. */
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

static run_output *signalled; /* what a signal has to tidy up */

static void tidy_up(void) {
    if (signalled->partial[0])
        output_remove_partial(signalled->partial);
    output_unlock(&signalled->lock);
}

/* ---------------------------------------------------------------------- checks */

/* Everything that is wrong with an output folder is said the same way. */
static nsa_status bad(const char *dir, const char *what) {
    return nsa_fail(NSA_ERR_IO, "output %s: %s", npy_label(dir), what);
}

/* The folder that `path` stands in. */
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

/* A folder that is there: it must take files, and it must not be the input, whose forced
 * block_idx.npy bears the name of a result. */
static nsa_status check_existing(run_output *o, const struct stat *st, const char *input) {
    struct stat other;
    char real[PATH_MAX];
    if (!S_ISDIR(st->st_mode))
        return bad(o->dir, "not a folder");
    if (!stat(input, &other) && other.st_dev == st->st_dev && other.st_ino == st->st_ino)
        return bad(o->dir, "the same folder as --input");
    if (!realpath(o->dir, real)) /* "." and links have a name to put ".partial" behind, too */
        return bad(o->dir, strerror(errno));
    snprintf(o->dir, sizeof o->dir, "%s", real);
    if (access(o->dir, W_OK | X_OK))
        return bad(o->dir, strerror(errno));
    o->exists = 1;
    o->mode = st->st_mode & 07777;
    return NSA_OK;
}

/* What partial folders, beside the output folder or in it, and the lock start with. */
static const char *stem_of(const run_output *o, int inside, char stem[STEM]) {
    snprintf(stem, STEM, "%s%s.partial-", o->dir, inside ? "/" : "");
    return stem;
}

/* Make the partial folder. One of our own number is of a run that was killed. */
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

/* Files cannot be renamed from one mounted disk to another, and only trying tells: a folder made
 * beside an existing one is moved into it. If that fails, results have to be written in it. */
static nsa_status choose_partial_dir(run_output *o) {
    char in_it[PATH_MAX + 32];
    nsa_status status = make_partial(o, 0);
    if (o->exists) {
        snprintf(in_it, sizeof in_it, "%s/.partial-%ld", o->dir, (long)getpid());
        if (!status && !rename(o->partial, in_it)) {
            rmdir(in_it);
            return NSA_OK; /* and nothing stands beside it any more */
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

/* Alone from here on, and without what killed runs left. */
static nsa_status claim_output(run_output *o) {
    char stem[STEM];
    nsa_status status = choose_partial_dir(o);
    o->partial[0] = 0; /* it was a trial; the next is made when there is a result to write */
    status = status ? status : output_lock_acquire(&o->lock, stem_of(o, o->inside, stem), o->dir);
    if (!status)
        output_clear_leftovers(stem);
    o->broken = status == NSA_ERR_STATE; /* to come second is no mistake of the caller's */
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
    if (!lstat(o->dir, &st)) /* a dangling link is there, but leads nowhere */
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

/* A folder that cannot be read counts as one with files: those are handled with more care. */
static int is_empty(const char *dir) {
    DIR *d = opendir(dir);
    int entries = 0;
    while (d && readdir(d))
        entries++;
    if (d)
        closedir(d);
    return d && entries == 2; /* "." and ".." */
}

/* Some shell may stand in the folder; it must not find itself in one that is gone. */
static int is_here(const char *dir) {
    struct stat a, b;
    return !stat(dir, &a) && !stat(".", &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Results, in the order in which they leave (downwards) and arrive (upwards): `out` leaves first
 * and arrives last, so that a folder with an out.npy is whole even if the machine stops midway. */
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
    if (S_ISDIR(st.st_mode)) { /* nothing of ours, and nothing to move away */
        errno = EISDIR;
        return -1;
    }
    return rename(a, b) ? -1 : 1;
}

/* Old results out, new ones in; on any failure everything back, in the opposite order. */
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

/* A whole folder by one rename where that is possible, else file by file. */
static nsa_status publish(run_output *o) {
    int can_rename = !o->exists || (!o->inside && is_empty(o->dir) && !is_here(o->dir));
    if (can_rename && o->exists)
        chmod(o->partial, o->mode);
    /* rename() refuses a folder that has filled up meanwhile; then it is one with files. */
    if (can_rename && !rename(o->partial, o->dir)) {
        o->partial[0] = 0;
        return NSA_OK;
    }
    if (!o->exists && errno != EEXIST && errno != ENOTEMPTY)
        return bad(o->dir, strerror(errno));
    nsa_status status = swap_files(o);
    if (!status)
        remove_partial(o); /* the old results, and the empty folder */
    return status;
}

nsa_status output_publish(run_output *o) {
    signals_hold(); /* a folder half old and half new would be what a signal must not leave */
    nsa_status status = o->partial[0] ? publish(o) : NSA_OK;
    signals_release();
    o->broken |= status != NSA_OK;
    return status;
}
