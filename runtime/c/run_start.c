/* run_start.c: --start. How long a program takes from nothing to its first result. */
#define _DEFAULT_SOURCE /* vfork */
#include "measure.h"
#include "run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t start_once(const char *program, char **arguments)
{
    int ends[2], status = 0;
    char byte;
    if (pipe(ends) != 0)
        fail(EXIT_DEVICE, "pipe: %s", strerror(errno));
    uint64_t before = now_ns();
    pid_t child = vfork();
    if (child < 0)
        fail(EXIT_DEVICE, "vfork: %s", strerror(errno));
    if (child == 0) {
        /* Its output is the pipe: the byte that mode_first writes. */
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        execv(program, arguments);
        _exit(EXIT_DEVICE);
    }
    close(ends[1]);
    ssize_t got;
    do
        got = read(ends[0], &byte, 1);
    while (got < 0 && errno == EINTR);
    uint64_t ns = now_ns() - before;
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (got != 1 || status != 0)
        fail(WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_DEVICE, "--start: starting %s failed", program);
    return ns;
}

int mode_start(int argc, char **argv, const options *o)
{
    char program[PATH_BYTES];
    char **arguments = allocate((size_t)(argc + 2) * sizeof *arguments);
    memcpy(arguments, argv, (size_t)argc * sizeof *arguments);
    arguments[argc] = "--first"; /* stands above --start */
    arguments[argc + 1] = NULL;
    program_path(program, argv[0]);
    uint64_t *ns = allocate((size_t)o->starts * sizeof *ns);
    for (long i = 0; i < o->starts; i++)
        ns[i] = start_once(program, arguments);
    printf("{\"start_ns\": [");
    for (long i = 0; i < o->starts; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)ns[i]);
    printf("]}\n");
    free(ns);
    free(arguments);
    return 0;
}

int mode_first(bevel_model *model, const options *o)
{
    prepare(model, o);
    must(bevel_run(model), "run");
    if (write(STDOUT_FILENO, "\n", 1) != 1)
        fail(EXIT_DEVICE, "--first: %s", strerror(errno));
    return 0;
}
