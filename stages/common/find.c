/** @file find.c
 *  @brief Finding stages: `NN_name.so` in a folder, opened with dlopen, asked for its table. */
#include "nsa_find.h"

#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_folder(const char *path) {
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

const char *nsa_stage_dir(void) {
    static _Thread_local char dir[PATH_MAX + 32];
    const char *given = getenv("NSA_STAGES");
    if (given && *given) {
        snprintf(dir, sizeof dir, "%s", given);
        return dir;
    }
    /* beside the shared object that this function is in: as built, and as installed */
    static const char *const places_to_look[] = {"stages", "nsa/stages"};
    char self[PATH_MAX];
    Dl_info library;
    if (dladdr((void *)places_to_look, &library) && realpath(library.dli_fname, self)) {
        *strrchr(self, '/') = 0;
        for (int i = 0; i < 2; i++) {
            snprintf(dir, sizeof dir, "%s/%s", self, places_to_look[i]);
            if (is_folder(dir))
                return dir;
        }
    }
    dir[0] = 0;
    return dir;
}

/* "NN_name.so" */
static int is_stage_file(const char *file) {
    size_t n = strlen(file);
    return n > 6 && isdigit((unsigned char)file[0]) && isdigit((unsigned char)file[1]) &&
           file[2] == '_' && !strcmp(file + n - 3, ".so");
}

/* What a stage that runs on a device exports besides. */
static int has_device_entries(const nsa_stage *s) {
    const int has_lens = s->slot_lens || !s->decode;
    return has_lens && s->free_memory && s->set_stream && s->check && s->pending && s->calls;
}

/* The required entry that a table lacks, or NULL. A half-written stage may leave out backward,
 * prefill, decode and causal, but what it has needs the functions it depends on. */
static const char *missing(const nsa_stage *s) {
    return !s->idea                       ? "idea"
           : !s->available                ? "available"
           : !s->open                     ? "open"
           : !s->load                     ? "load"
           : !s->forward                  ? "forward"
           : !s->read                     ? "read"
           : !s->close                    ? "close"
           : s->backward && !s->load_dout ? "load_dout, which backward needs,"
           : s->decode && !s->load_step   ? "load_step, which decode needs,"
           : s->decode && !s->prefill     ? "prefill, which decode needs,"
           : s->device && !has_device_entries(s)
               ? "free_memory, set_stream, check, pending, calls or slot_lens, which device needs,"
               : NULL;
}

/* Open one shared object; if that fails, `problem` says why. */
static void open_stage(const char *path, nsa_found *found) {
    memset(found, 0, sizeof *found);
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    size_t n = strlen(file);
    int stem = (int)(n > 3 && !strcmp(file + n - 3, ".so") ? n - 3 : n);
    snprintf(found->name, sizeof found->name, "%.*s", stem, file);
    struct stat st; /* opening a pipe would block */
    if (!stat(path, &st) && !S_ISREG(st.st_mode)) {
        snprintf(found->problem, sizeof found->problem, "%s, expected a regular file",
                 S_ISDIR(st.st_mode)    ? "a folder"
                 : S_ISFIFO(st.st_mode) ? "a pipe"
                 : S_ISSOCK(st.st_mode) ? "a socket"
                                        : "a device");
        return;
    }
    /* NODELETE: OpenMP's threads outlive the stage that started them and still need its code. */
    found->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!found->handle) {
        snprintf(found->problem, sizeof found->problem, "%s", dlerror());
        return;
    }
    const nsa_stage *(*get)(void) = NULL;
    void *symbol = dlsym(found->handle, "nsa_stage_get");
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from object to function pointer */
    const nsa_stage *stage = get ? get() : NULL;
    if (!stage)
        snprintf(found->problem, sizeof found->problem, "exports no nsa_stage_get()");
    else if (stage->abi != NSA_ABI)
        snprintf(found->problem, sizeof found->problem, "was built for contract %u, this is %u",
                 stage->abi, NSA_ABI);
    else if (missing(stage))
        snprintf(found->problem, sizeof found->problem, "leaves %s empty in its table",
                 missing(stage));
    else
        found->stage = stage;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* List the names of the folder's stage files, sorted. */
static nsa_status list_files(const char *dir, char ***files, size_t *count) {
    DIR *d = *dir ? opendir(dir) : NULL;
    if (!d)
        return nsa_fail(NSA_ERR_IO, "no folder of stages%s%s: %s", *dir ? " at " : "", dir,
                        *dir ? strerror(errno) : "build them, or set NSA_STAGES");
    nsa_status status = NSA_OK;
    for (struct dirent *e; !status && (e = readdir(d));) {
        if (!is_stage_file(e->d_name))
            continue;
        char **more = realloc(*files, (*count + 1) * sizeof **files);
        if (more)
            *files = more;
        if (!more || !(more[*count] = strdup(e->d_name)))
            status = nsa_fail(NSA_ERR_MEMORY, "cannot list %s", dir);
        else
            ++*count;
    }
    closedir(d);
    if (*count)
        qsort(*files, *count, sizeof **files, by_name);
    return status;
}

static void free_files(char **files, size_t count) {
    for (size_t i = 0; i < count; i++)
        free(files[i]);
    free(files);
}

nsa_status nsa_find_stages(const char *dir, nsa_found **list, size_t *count) {
    char **files = NULL;
    dir = dir ? dir : nsa_stage_dir();
    *list = NULL;
    *count = 0;
    nsa_status status = list_files(dir, &files, count);
    if (!status && !*count)
        status = nsa_fail(NSA_ERR_IO, "no stages (NN_name.so) in %s", dir);
    if (!status && !(*list = calloc(*count, sizeof **list)))
        status = nsa_fail(NSA_ERR_MEMORY, "cannot list %s", dir);
    for (size_t i = 0; !status && i < *count; i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        open_stage(path, &(*list)[i]);
    }
    free_files(files, *count);
    if (status)
        *count = 0;
    return status;
}

/* Does a name ("01_naive_nsa") or a number ("01") mean this file? */
static int names(const char *file, const char *name) {
    size_t n = strlen(name);
    return !strncmp(file, name, n) && (!strcmp(file + n, ".so") || (n == 2 && file[n] == '_'));
}

nsa_status nsa_find_stage(const char *dir, const char *name, nsa_found *found) {
    char path[PATH_MAX];
    char **files = NULL;
    size_t count = 0, matches = 0;
    memset(found, 0, sizeof *found);
    if (strchr(name, '/')) {
        snprintf(path, sizeof path, "%s", name);
    } else {
        dir = dir ? dir : nsa_stage_dir();
        nsa_status status = list_files(dir, &files, &count);
        for (size_t i = 0; !status && i < count; i++) {
            if (names(files[i], name) && !matches++)
                snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        }
        free_files(files, count);
        if (status)
            return status;
        if (matches != 1)
            return nsa_fail(NSA_ERR_IO, "%s stage \"%s\" in %s", matches ? "more than one" : "no",
                            name, dir);
    }
    open_stage(path, found);
    if (found->stage)
        return NSA_OK;
    nsa_free_stage(found);
    return nsa_fail(NSA_ERR_IO, "stage %s: %s", found->name, found->problem);
}

void nsa_free_stage(nsa_found *found) {
    if (found->handle)
        dlclose(found->handle);
    found->handle = NULL;
    found->stage = NULL;
}

void nsa_free_stages(nsa_found *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        nsa_free_stage(&list[i]);
    free(list);
}
