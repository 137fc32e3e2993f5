/* weights.h: the weights.bin container. All integers are little-endian.
 *
 *     0    8  magic "BEVELWTS"
 *     8    4  format version
 *    12    4  header bytes (192)
 *    16    8  payload bytes
 *    24    8  zero
 *    32   32  SHA-256 of the payload
 *    64   64  graph hash, ASCII, zero padded
 *   128   64  zero
 *   192      payload: constants, each 64-byte aligned, 64 bytes of tail padding
 */
#ifndef BEVEL_WEIGHTS_H
#define BEVEL_WEIGHTS_H

#include "graph.h"

#define BEVEL_WEIGHTS_VERSION 1u
#define BEVEL_WEIGHTS_HEADER 192u

/* Check a weights image against the compiled-in graph; the payload is not read. */
bevel_status bevel_weights_check(const void *image, size_t nbytes);

/* Map a weights file read-only. */
bevel_status bevel_weights_map(const char *path, const void **image, size_t *nbytes);
void bevel_weights_unmap(const void *image, size_t nbytes);

#endif
