/* bevel_custom.h: what the C function of a custom operator gets. For `--custom-op mydomain.Swirl=swirl.c`, swirl.c defines
 *
 *     #include "bevel_custom.h"
 *     int32_t Swirl(const bevel_custom_call *call)
 *     {
 *         const float *x = call->inputs[0].data;
 *         float *y = call->outputs[0].data;
 *         float angle = (float)bevel_custom_number(call, "angle", 0.0);
 *         for (int64_t i = 0; i < bevel_custom_count(&call->inputs[0]); i++) ...
 *         return 0;
 *     }
 *
 * Tensors are row-major and do not overlap. The function may use the C library and libm; it must not keep pointers, and it is called
 * from one thread at a time for each instance. A result other than 0 makes bevel_run return BEVEL_E_KERNEL. */
#ifndef BEVEL_CUSTOM_H
#define BEVEL_CUSTOM_H

#include "bevel.h"

#include <string.h>

typedef struct bevel_custom_tensor {
    void *data; /* inputs are read-only */
    const int64_t *shape;
    int32_t rank;
    int32_t dtype; /* bevel_dtype */
} bevel_custom_tensor;

/* An attribute of the ONNX node: `count` integers or numbers (whichever is not NULL), or text. */
typedef struct bevel_custom_attribute {
    const char *name;
    const int64_t *integers;
    const double *numbers;
    const char *text;
    size_t count;
} bevel_custom_attribute;

typedef struct bevel_custom_call {
    const bevel_custom_tensor *inputs, *outputs;
    const bevel_custom_attribute *attributes;
    size_t num_inputs, num_outputs, num_attributes;
} bevel_custom_call;

/* Number of elements. */
static inline int64_t bevel_custom_count(const bevel_custom_tensor *tensor)
{
    int64_t count = 1;
    for (int32_t i = 0; i < tensor->rank; i++)
        count *= tensor->shape[i];
    return count;
}

/* The attribute called `name`, NULL when the node has none. */
static inline const bevel_custom_attribute *bevel_custom_find(const bevel_custom_call *call, const char *name)
{
    for (size_t i = 0; i < call->num_attributes; i++)
        if (strcmp(call->attributes[i].name, name) == 0)
            return &call->attributes[i];
    return NULL;
}

/* An integer attribute, or `otherwise`. */
static inline int64_t bevel_custom_integer(const bevel_custom_call *call, const char *name, int64_t otherwise)
{
    const bevel_custom_attribute *found = bevel_custom_find(call, name);
    return found && found->integers && found->count > 0 ? found->integers[0] : otherwise;
}

#ifndef BEVEL_CUSTOM_NO_FLOAT
/* A number attribute (integers count as numbers), or `otherwise`. */
static inline double bevel_custom_number(const bevel_custom_call *call, const char *name, double otherwise)
{
    const bevel_custom_attribute *found = bevel_custom_find(call, name);
    if (!found || found->count == 0)
        return otherwise;
    return found->numbers ? found->numbers[0] : found->integers ? (double)found->integers[0] : otherwise;
}
#endif

#endif
