/* run_float.h: the runner's floating-point arithmetic, kept apart from everything that must have none. */
#ifndef BEVEL_RUN_FLOAT_H
#define BEVEL_RUN_FLOAT_H

#include "bevel.h"

/* 1 when max|a - b| <= 1e-4 * max|b| (1e-2 where the model computes in half precision) and no element is NaN on one side only. dtype is BEVEL_FLOAT32 or BEVEL_FLOAT64. */
int run_float_close(int32_t dtype, const void *a, const void *b, size_t nbytes);

/* Text of a scale that reads back to the same float. */
void run_float_text(const float *value, char text[32]);

#endif
