/** @file fuzz_npy.c
 *  @brief Fuzz target: any bytes as a .npy file are refused with an error, or give a tensor that
 * fills its memory exactly and survives being written and read again. */
#include "fuzz/bytes.h"
#include "io/npy.h"

#include <sys/mman.h>
#include <unistd.h>

/* Write to a file in memory, read it back, and compare. */
static void write_and_read(const nsa_tensor *t) {
    char path[32];
    int fd = memfd_create("npy", 0);
    nsa_tensor back;
    MUST(fd >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    MUST(npy_write(path, t) == NSA_OK);
    MUST(npy_read(path, &back) == NSA_OK);
    MUST(back.dtype == t->dtype && back.ndim == t->ndim);
    MUST(!memcmp(back.shape, t->shape, (size_t)t->ndim * sizeof t->shape[0]));
    MUST(!memcmp(back.data, t->data, (size_t)nsa_count(t) * nsa_dtype_size(t->dtype)));
    npy_free(&back);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    nsa_tensor t;
    nsa_status status = npy_parse(data, size, "fuzz.npy", &t);
    if (status) {
        MUST(status == NSA_ERR_INPUT && *nsa_last_error());
        MUST(!t.dtype && !t.data);
    } else {
        MUST(t.dtype == NSA_F32 || t.dtype == NSA_F64 || t.dtype == NSA_I32);
        MUST(t.ndim >= 1 && t.ndim <= 3 && t.data);
        size_t bytes = (size_t)nsa_count(&t) * nsa_dtype_size(t.dtype);
        MUST(nsa_count(&t) >= 0 && bytes < size);
        MUST(!memcmp(t.data, data + size - bytes, bytes)); /* the data are at the end of the file */
        write_and_read(&t);
        npy_free(&t);
    }
    return 0;
}
