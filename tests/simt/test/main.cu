// Run the tests in every order and count passed and failed expectations. A GPU has no orders and no
// reports, so what tests those is left out there and everything else runs once.
#include "test.cuh"

#include <stdarg.h>

const char *order = "gpu";
static int passed, failed;
static void *allocations[64];
static int allocation_count;

void expect(bool holds, const char *file, int line, const char *format, ...) {
    if (holds) {
        passed++;
        return;
    }
    va_list args;
    va_start(args, format);
    printf("FAIL %s:%d (%s): ", file, line, order);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    failed++;
}

void expect_report(const char *what, const char *first, const char *second) {
    cudaError_t error = cudaGetLastError();
    EXPECT(error != cudaSuccess, "%s: no error", what);
    EXPECT(cudaGetLastError() == cudaSuccess, "%s: the error stays", what);
#ifdef NSA_SIMT
    const char *text = simt_last_report();
    EXPECT(error == cudaSuccess || (strstr(text, first) && strstr(text, second)),
           "%s: expected \"%s\" and \"%s\" in: %s", what, first, second, text);
#else
    (void)first, (void)second;
#endif
}

void *device_copy(size_t bytes, const void *host) {
    void *p = nullptr;
    EXPECT_OK(cudaMalloc(&p, bytes));
    if (host)
        EXPECT_OK(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    allocations[allocation_count++] = p;
    return p;
}

void free_all() {
    while (allocation_count)
        EXPECT_OK(cudaFree(allocations[--allocation_count]));
}

static void all() {
    test_basics();
    test_tensor();
    test_runtime();
    test_pointers();
    test_devices();
#ifdef NSA_SIMT
    test_async();
    test_errors();
#endif
}

int main() {
#ifdef NSA_SIMT
    static const char *const orders[] = {"forward",  "reverse",  "random:1",
                                         "random:2", "random:3", "random:4"};
    setenv("NSA_SIMT_DEVICE", "sm_80", 1);
    for (const char *o : orders) {
        order = o;
        setenv("NSA_SIMT_ORDER", o, 1);
        all();
    }
#else
    all();
#endif
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
