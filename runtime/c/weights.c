/* weights.c: map weights.bin and check that it belongs to this code. */
#define _POSIX_C_SOURCE 200809L
#include "weights.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t load_le(const unsigned char *p, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | p[i];
    return value;
}

bevel_status bevel_weights_check(const void *image, size_t nbytes)
{
    const unsigned char *p = image;
    if (nbytes < 8 || memcmp(p, "BEVELWTS", 8) != 0)
        return BEVEL_E_WEIGHTS;
    if (nbytes < BEVEL_WEIGHTS_HEADER)
        return BEVEL_E_LENGTH;
    if (load_le(p + 8, 4) != BEVEL_WEIGHTS_VERSION || load_le(p + 12, 4) != BEVEL_WEIGHTS_HEADER)
        return BEVEL_E_VERSION;
    if (load_le(p + 16, 8) != nbytes - BEVEL_WEIGHTS_HEADER)
        return BEVEL_E_LENGTH;
    /* The header's hash is compared too: the same graph may have been packed for another target. */
    if (memcmp(p + 64, bevel_the_graph.graph_hash, 64) != 0 || memcmp(p + 32, bevel_the_graph.weights_sha256, 32) != 0 ||
        nbytes - BEVEL_WEIGHTS_HEADER != bevel_the_graph.weights_bytes)
        return BEVEL_E_MISMATCH;
    return BEVEL_OK;
}

bevel_status bevel_weights_map(const char *path, const void **image, size_t *nbytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return BEVEL_E_OPEN;
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return BEVEL_E_OPEN;
    }
    if (st.st_size == 0) { /* mmap refuses an empty file */
        close(fd);
        return BEVEL_E_LENGTH;
    }
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return BEVEL_E_OPEN;
    *image = map;
    *nbytes = (size_t)st.st_size;
    return BEVEL_OK;
}

void bevel_weights_unmap(const void *image, size_t nbytes)
{
    munmap((void *)(uintptr_t)image, nbytes);
}
