/** @file replay.c
 *  @brief Run a fuzz target once on each named file, without libFuzzer: for gcc, coverage and
 * valgrind. */
#include "fuzz/bytes.h"

enum { MAX_BYTES = 1 << 20 };

int main(int argc, char **argv) {
    static uint8_t buffer[MAX_BYTES];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            perror(argv[i]);
            return 1;
        }
        size_t size = fread(buffer, 1, MAX_BYTES, file);
        fclose(file);
        uint8_t *data = malloc(size ? size : 1);
        if (!data)
            return 1;
        memcpy(data, buffer, size);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
    printf("%d files replayed\n", argc - 1);
    return 0;
}
