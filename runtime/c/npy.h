/* npy.h: read and write .npy files (and raw .bin files) for the runner. Files are not trusted. */
#ifndef BEVEL_NPY_H
#define BEVEL_NPY_H

#include "bevel.h"

#include <stdio.h>

#define NPY_MAX_RANK 16

typedef struct npy_array {
    const char *data;
    size_t nbytes;
    int32_t dtype; /* bevel_dtype, or -1: raw bytes of no type */
    int32_t rank;
    int64_t shape[NPY_MAX_RANK];
    void *map;
    size_t map_bytes;
} npy_array;

size_t npy_item_bytes(int32_t dtype);
const char *npy_dtype_name(int32_t dtype);

/* Map `path` read-only. A name ending in .npy is parsed, any other is raw. NULL on success, else what is wrong. */
const char *npy_open(const char *path, npy_array *out);
void npy_close(npy_array *array);

/* Write the header of a C-ordered array. 0 on success. */
int npy_write_header(FILE *file, int32_t dtype, int32_t rank, const int64_t *shape);

#endif
