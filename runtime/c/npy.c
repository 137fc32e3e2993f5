/* npy.c: the .npy format, versions 1 to 3 (numpy.lib.format), little-endian, C order. */
#define _POSIX_C_SOURCE 200809L
#include "npy.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *code, *name;
    size_t bytes;
} types[] = {
    [BEVEL_BOOL] = {"|b1", "bool", 1},       [BEVEL_INT8] = {"|i1", "int8", 1},       [BEVEL_UINT8] = {"|u1", "uint8", 1},
    [BEVEL_INT16] = {"<i2", "int16", 2},     [BEVEL_UINT16] = {"<u2", "uint16", 2},   [BEVEL_INT32] = {"<i4", "int32", 4},
    [BEVEL_UINT32] = {"<u4", "uint32", 4},   [BEVEL_INT64] = {"<i8", "int64", 8},     [BEVEL_UINT64] = {"<u8", "uint64", 8},
    [BEVEL_FLOAT16] = {"<f2", "float16", 2}, [BEVEL_FLOAT32] = {"<f4", "float32", 4}, [BEVEL_FLOAT64] = {"<f8", "float64", 8},
};
enum { TYPES = sizeof types / sizeof types[0] };

size_t npy_item_bytes(int32_t dtype)
{
    return types[dtype].bytes;
}

const char *npy_dtype_name(int32_t dtype)
{
    return dtype < 0 ? "raw bytes" : types[dtype].name;
}

/* Position after `key` and its colon in the header text, or NULL. */
static const char *value_of(const char *header, const char *key)
{
    const char *p = strstr(header, key);
    if (!p)
        return NULL;
    p += strlen(key);
    p += strspn(p, " ");
    if (*p++ != ':')
        return NULL;
    return p + strspn(p, " ");
}

static const char *parse_shape(const char *p, npy_array *out)
{
    if (*p++ != '(')
        return "the shape is not a tuple";
    out->rank = 0;
    for (;;) {
        p += strspn(p, " ");
        if (*p == ')')
            return NULL;
        if (*p < '0' || *p > '9')
            return "the shape holds something other than numbers";
        if (out->rank == NPY_MAX_RANK)
            return "the array has more than 16 dimensions";
        int64_t dim = 0;
        for (; *p >= '0' && *p <= '9'; p++) {
            if (dim > (INT64_MAX - 9) / 10)
                return "a dimension is too large";
            dim = dim * 10 + (*p - '0');
        }
        out->shape[out->rank++] = dim;
        p += strspn(p, " ");
        if (*p == ',')
            p++;
        else if (*p != ')')
            return "the shape is not closed";
    }
}

static const char *parse(npy_array *out)
{
    const unsigned char *p = out->map;
    if (out->map_bytes < 12 || memcmp(p, "\x93NUMPY", 6) != 0)
        return "not a .npy file";
    if (p[6] < 1 || p[6] > 3)
        return "unknown .npy version";
    size_t prefix = p[6] == 1 ? 10 : 12;
    size_t length = p[8] | (size_t)p[9] << 8;
    if (p[6] > 1)
        length |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
    if (length > 65536 || length > out->map_bytes - prefix)
        return "the .npy header is truncated";
    char *header = malloc(length + 1);
    if (!header)
        return "no memory";
    memcpy(header, p + prefix, length);
    header[length] = 0;

    const char *wrong = NULL;
    const char *descr = value_of(header, "'descr'"), *order = value_of(header, "'fortran_order'"), *shape = value_of(header, "'shape'");
    out->dtype = -1;
    if (!descr || !order || !shape)
        wrong = "the .npy header lacks descr, fortran_order or shape";
    else if (strncmp(order, "False", 5) != 0)
        wrong = "the array is in Fortran order: save numpy.ascontiguousarray(array)";
    else
        wrong = parse_shape(shape, out);
    for (int32_t i = 0; !wrong && i < TYPES; i++)
        if (descr[0] == '\'' && strncmp(descr + 1, types[i].code, 3) == 0 && descr[4] == '\'')
            out->dtype = i;
    free(header);
    if (wrong)
        return wrong;
    if (out->dtype < 0)
        return "the dtype is not a little-endian integer, bool or float";

    size_t nbytes = types[out->dtype].bytes;
    for (int32_t i = 0; i < out->rank; i++)
        if (__builtin_mul_overflow(nbytes, (size_t)out->shape[i], &nbytes))
            return "the shape is too large";
    out->data = (const char *)out->map + prefix + length;
    out->nbytes = out->map_bytes - prefix - length;
    if (out->nbytes < nbytes)
        return "the file is truncated: it holds less data than its shape says";
    out->nbytes = nbytes;
    return NULL;
}

const char *npy_open(const char *path, npy_array *out)
{
    memset(out, 0, sizeof *out);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return "cannot be opened";
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
        close(fd);
        return "is empty or not a regular file";
    }
    out->map_bytes = (size_t)st.st_size;
    out->map = mmap(NULL, out->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (out->map == MAP_FAILED) {
        out->map = NULL;
        return "cannot be mapped";
    }
    size_t length = strlen(path);
    if (length < 4 || strcmp(path + length - 4, ".npy") != 0) {
        out->dtype = -1;
        out->data = out->map;
        out->nbytes = out->map_bytes;
        return NULL;
    }
    const char *wrong = parse(out);
    if (wrong)
        npy_close(out);
    return wrong;
}

void npy_close(npy_array *array)
{
    if (array->map)
        munmap(array->map, array->map_bytes);
    array->map = NULL;
}

int npy_write_header(FILE *file, int32_t dtype, int32_t rank, const int64_t *shape)
{
    char text[512];
    int n = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (", types[dtype].code);
    for (int32_t i = 0; i < rank; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%lld,%s", (long long)shape[i], i + 1 < rank ? " " : "");
    n += snprintf(text + n, sizeof text - (size_t)n, "), }");
    /* 10 bytes of prefix, the text, spaces and a newline fill a multiple of 64. */
    int total = (10 + n + 1 + 63) / 64 * 64, length = total - 10;
    unsigned char prefix[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (unsigned char)length, (unsigned char)(length >> 8)};
    return fwrite(prefix, 1, 10, file) == 10 && fprintf(file, "%s%*s\n", text, length - n - 1, "") == length ? 0 : -1;
}
