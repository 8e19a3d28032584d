/** @file
 *  @brief What the chains of a bfloat16 stage need besides: rounded inputs, and a check of every
 *  row. */
#include "steps.cuh"

bf16 *rounded(const float *x, int64_t rows, layout to) {
    const int64_t padded = (rows + BLOCK - 1) / BLOCK * BLOCK;
    bf16 *y = (bf16 *)allocate(padded * D, sizeof *y);
    for (int64_t i = 0; i < padded * D; i++) {
        const int64_t row = i / D;
        const int c = (int)(i % D);
        const int64_t at = to == ROWS      ? i
                           : to == COLUMNS ? row / BLOCK * BLOCK * D + c * BLOCK + row % BLOCK
                                           : mem_offset(row, c, D);
        y[at] = __float2bfloat16_rn(row < rows ? x[i] : NAN);
    }
    return (bf16 *)copy_to_device(y, padded * D, sizeof *y);
}

const float *floats(const float *x, int64_t n, bool is_rounded) {
    float *y = (float *)allocate(n, sizeof *y);
    for (int64_t i = 0; i < n; i++)
        y[i] = is_rounded ? __bfloat162float(__float2bfloat16_rn(x[i])) : x[i];
    return y;
}

double rounding_error(const float *x, const float *reference, int64_t rows, int64_t columns) {
    double difference = 0, all = 0, worst = 0;
    for (int64_t i = 0; i < rows * columns; i++)
        all += (double)reference[i] * (double)reference[i] / (double)rows;
    for (int64_t row = 0; row < rows; row++) {
        double own = 0, off = 0;
        for (int64_t i = row * columns; i < (row + 1) * columns; i++) {
            const double d = (double)x[i] - (double)reference[i];
            off += d * d;
            own += (double)reference[i] * (double)reference[i];
        }
        difference += off / (double)rows;
        worst = larger(worst, sqrt(off / larger(own, all)));
    }
    return larger(sqrt(difference / all), worst / 4);
}
