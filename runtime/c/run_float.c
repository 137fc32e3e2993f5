/* run_float.c: tolerance of float self-tests, and printing of scales. */
#include "run_float.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Reordered float32 sums of the reference models differ by up to about 1e-5 of the largest output, sums of halves by 2e-3: these are
 * the bounds bevel promises. */
static const double TOLERANCE = 1e-4, HALF_TOLERANCE = 1e-2;

static int half_precision(void)
{
    for (size_t i = 0; i < bevel_num_steps(); i++)
        if (strcmp(bevel_step_at(i)->bits, "fp16") == 0)
            return 1;
    return 0;
}

static double element(int32_t dtype, const char *p, size_t i)
{
    /* Data in a file need not be aligned. */
    if (dtype == BEVEL_FLOAT32) {
        float value;
        memcpy(&value, p + i * sizeof value, sizeof value);
        return value;
    }
    double value;
    memcpy(&value, p + i * sizeof value, sizeof value);
    return value;
}

int run_float_close(int32_t dtype, const void *a, const void *b, size_t nbytes)
{
    size_t count = nbytes / (dtype == BEVEL_FLOAT32 ? 4 : 8);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        double x = element(dtype, a, i), y = element(dtype, b, i);
        if (isnan(x) || isnan(y) || isinf(x) || isinf(y)) {
            if (memcmp(&x, &y, sizeof x) != 0 && !(isnan(x) && isnan(y)))
                return 0;
            continue;
        }
        worst = fmax(worst, fabs(x - y));
        largest = fmax(largest, fabs(y));
    }
    return worst <= (half_precision() ? HALF_TOLERANCE : TOLERANCE) * largest;
}

void run_float_text(const float *value, char text[32])
{
    snprintf(text, 32, "%.9g", (double)*value);
}
