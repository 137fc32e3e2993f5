/* convert.c: the float boundary, the only floating-point arithmetic of the library (docs/numerics.md):
 *
 *     q = clamp(zp + rint_half_even(x / s))        x = s * (q - zp)
 *
 * in IEEE single precision. It stays in an object of its own so that an integer-only program which never calls it contains none. */
#include "bevel.h"

#include <math.h>
#include <string.h>

typedef struct {
    int64_t lo, hi;
    int bytes;
} code_range;

/* Range of the code type; bytes is 0 for types that are not codes. */
static code_range range_of(int32_t dtype)
{
    switch (dtype) {
    case BEVEL_INT8: return (code_range){INT8_MIN, INT8_MAX, 1};
    case BEVEL_UINT8: return (code_range){0, UINT8_MAX, 1};
    case BEVEL_INT16: return (code_range){INT16_MIN, INT16_MAX, 2};
    case BEVEL_UINT16: return (code_range){0, UINT16_MAX, 2};
    case BEVEL_INT32: return (code_range){INT32_MIN, INT32_MAX, 4};
    default: return (code_range){0, 0, 0};
    }
}

static int64_t quantize(float x, float scale, int32_t zero_point, code_range range)
{
    float steps = rintf(x / scale);
    if (steps != steps)
        return zero_point;
    /* 2^40 is far outside every code and far inside int64: the conversion below is defined for infinities too. */
    if (steps > 1099511627776.0f)
        return range.hi;
    if (steps < -1099511627776.0f)
        return range.lo;
    int64_t code = zero_point + (int64_t)steps;
    return code < range.lo ? range.lo : code > range.hi ? range.hi : code;
}

static int64_t element_count(const bevel_tensor *tensor)
{
    int64_t count = 1;
    for (int32_t i = 0; i < tensor->rank; i++)
        count *= tensor->shape[i];
    return count;
}

/* The shared checks of both directions: BEVEL_OK with *range.bytes == 0 means float32. */
static bevel_status float_view(const bevel_tensor *tensor, const float *values, size_t count, code_range *range)
{
    if (!tensor || !values || count != (size_t)element_count(tensor))
        return BEVEL_E_ARGUMENT;
    *range = tensor->scale > 0 ? range_of(tensor->dtype) : (code_range){0, 0, 0};
    return range->bytes != 0 || tensor->dtype == BEVEL_FLOAT32 ? BEVEL_OK : BEVEL_E_TYPE;
}

bevel_status bevel_set_input_f32(bevel_model *model, size_t index, const float *values, size_t count)
{
    const bevel_tensor *tensor = bevel_input(model, index);
    code_range range;
    bevel_status status = float_view(tensor, values, count, &range);
    if (status != BEVEL_OK)
        return status;
    if (range.bytes == 0) {
        memcpy(tensor->data, values, count * sizeof *values);
        return BEVEL_OK;
    }
    for (size_t i = 0; i < count; i++) {
        int64_t code = quantize(values[i], tensor->scale, tensor->zero_point, range);
        switch (range.bytes) {
        case 1: ((uint8_t *)tensor->data)[i] = (uint8_t)code; break;
        case 2: ((uint16_t *)tensor->data)[i] = (uint16_t)code; break;
        default: ((uint32_t *)tensor->data)[i] = (uint32_t)code; break;
        }
    }
    return BEVEL_OK;
}

bevel_status bevel_get_output_f32(const bevel_model *model, size_t index, float *values, size_t count)
{
    const bevel_tensor *tensor = bevel_output(model, index);
    code_range range;
    bevel_status status = float_view(tensor, values, count, &range);
    if (status != BEVEL_OK)
        return status;
    if (range.bytes == 0) {
        memcpy(values, tensor->data, count * sizeof *values);
        return BEVEL_OK;
    }
    for (size_t i = 0; i < count; i++) {
        int64_t code;
        switch (tensor->dtype) {
        case BEVEL_INT8: code = ((const int8_t *)tensor->data)[i]; break;
        case BEVEL_UINT8: code = ((const uint8_t *)tensor->data)[i]; break;
        case BEVEL_INT16: code = ((const int16_t *)tensor->data)[i]; break;
        case BEVEL_UINT16: code = ((const uint16_t *)tensor->data)[i]; break;
        default: code = ((const int32_t *)tensor->data)[i]; break;
        }
        values[i] = tensor->scale * (float)(code - tensor->zero_point);
    }
    return BEVEL_OK;
}
