/* sha256.h: SHA-256 (FIPS 180-4). */
#ifndef BEVEL_SHA256_H
#define BEVEL_SHA256_H

#include <stddef.h>

void bevel_sha256(const void *data, size_t nbytes, unsigned char digest[32]);

#endif
