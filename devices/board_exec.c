/* Makes a native shell behave like an emulated board's: preloaded (LD_PRELOAD) into every command of a session.
 *
 * Programs of the board's architecture start under qemu-user (BEVEL_BOARD_QEMU; qemu itself reads QEMU_CPU and QEMU_LD_PREFIX),
 * programs of any other architecture that were put on the board (below BEVEL_BOARD_ROOT) are refused as the board's kernel would,
 * uname names the board's architecture and /proc/cpuinfo is the board's. The kernel's binfmt_misc would do the first, but needs
 * root and a kernel that has it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#if defined(__x86_64__)
#define HOST_MACHINE 62
#elif defined(__aarch64__)
#define HOST_MACHINE 183
#else
#error "emulated boards run on x86-64 and aarch64 hosts"
#endif

extern char **environ;

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* e_machine of an ELF file, 0 for anything else. */
static int elf_machine(const char *path) {
    unsigned char head[20];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t got = read(fd, head, sizeof head);
    close(fd);
    if (got != (ssize_t)sizeof head || memcmp(head, "\177ELF", 4) != 0) return 0;
    return head[18] | head[19] << 8;
}

static int on_board(const char *path) {
    char resolved[4096];
    const char *root = setting("BEVEL_BOARD_ROOT");
    size_t length = strlen(root);
    return length && realpath(path, resolved) && strncmp(resolved, root, length) == 0 && resolved[length] == '/';
}

enum verdict { NATIVE, EMULATE, REFUSE };

static enum verdict judge(const char *path) {
    int machine = elf_machine(path);
    if (machine == 0) return NATIVE;
    if (machine == BOARD_MACHINE && (BOARD_MACHINE != HOST_MACHINE || on_board(path))) return EMULATE;
    return on_board(path) ? REFUSE : NATIVE;
}

/* argv for qemu: qemu -0 ARGV0 PATH ARGS. The emulated program must not try to preload this native library. */
static char **emulated_argv(const char *path, char *const argv[]) {
    size_t count = 0;
    while (argv[count]) count++;
    char **out = calloc(count + 5, sizeof *out);
    if (!out) return NULL;
    out[0] = (char *)setting("BEVEL_BOARD_QEMU");
    out[1] = "-0";
    out[2] = count ? argv[0] : (char *)path;
    out[3] = (char *)path;
    for (size_t i = 1; i < count; i++) out[3 + i] = argv[i];
    return out;
}

static char **without_preload(char *const envp[]) {
    size_t count = 0, kept = 0;
    while (envp[count]) count++;
    char **out = calloc(count + 1, sizeof *out);
    for (size_t i = 0; out && i < count; i++)
        if (strncmp(envp[i], "LD_PRELOAD=", 11) != 0) out[kept++] = envp[i];
    return out;
}

int execve(const char *path, char *const argv[], char *const envp[]) {
    static int (*next)(const char *, char *const[], char *const[]);
    if (!next) next = (int (*)(const char *, char *const[], char *const[]))dlsym(RTLD_NEXT, "execve");
    switch (judge(path)) {
    case NATIVE:
        return next(path, argv, envp);
    case REFUSE:
        errno = ENOEXEC;
        return -1;
    case EMULATE:
        break;
    }
    if (access(path, X_OK) != 0) return -1;
    char **command = emulated_argv(path, argv), **environment = without_preload(envp);
    if (!command || !environment) {
        errno = ENOMEM;
        return -1;
    }
    next(command[0], command, environment);
    free(command);
    free(environment);
    return -1;
}

int execv(const char *path, char *const argv[]) { return execve(path, argv, environ); }

/* The board's programs are started by path; a bare name is a native tool on PATH. */
int execvp(const char *file, char *const argv[]) {
    static int (*next)(const char *, char *const[]);
    if (!next) next = (int (*)(const char *, char *const[]))dlsym(RTLD_NEXT, "execvp");
    return strchr(file, '/') && judge(file) != NATIVE ? execve(file, argv, environ) : next(file, argv);
}

typedef int spawn_fn(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],
                     char *const[]);

static int spawn(const char *name, pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
    spawn_fn *next = (spawn_fn *)dlsym(RTLD_NEXT, name);
    enum verdict verdict = strchr(path, '/') ? judge(path) : NATIVE;
    if (verdict == NATIVE) return next(pid, path, actions, attributes, argv, envp);
    if (verdict == REFUSE) return ENOEXEC;
    if (access(path, X_OK) != 0) return errno;
    char **command = emulated_argv(path, argv), **environment = without_preload(envp);
    int status = command && environment ? next(pid, command[0], actions, attributes, command, environment) : ENOMEM;
    free(command);
    free(environment);
    return status;
}

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                char *const argv[], char *const envp[]) {
    return spawn("posix_spawn", pid, path, actions, attributes, argv, envp);
}

int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                 char *const argv[], char *const envp[]) {
    return spawn("posix_spawnp", pid, file, actions, attributes, argv, envp);
}

int uname(struct utsname *out) {
    static int (*next)(struct utsname *);
    if (!next) next = (int (*)(struct utsname *))dlsym(RTLD_NEXT, "uname");
    int status = next(out);
    if (status == 0) snprintf(out->machine, sizeof out->machine, "%s", BOARD_UNAME);
    return status;
}

static const char *redirect(const char *path) {
    const char *cpuinfo = setting("BEVEL_BOARD_CPUINFO");
    return *cpuinfo && strcmp(path, "/proc/cpuinfo") == 0 ? cpuinfo : path;
}

#define MODE(flags, mode)                                   \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                \
        va_list arguments;                                  \
        va_start(arguments, flags);                         \
        mode = va_arg(arguments, mode_t);                   \
        va_end(arguments);                                  \
    }

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...) {                        \
        static int (*next)(const char *, int, ...);                     \
        mode_t mode = 0;                                                \
        MODE(flags, mode)                                               \
        if (!next) next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return next(redirect(path), flags, mode);                       \
    }

#define OPENAT(name)                                                    \
    int name(int folder, const char *path, int flags, ...) {            \
        static int (*next)(int, const char *, int, ...);                \
        mode_t mode = 0;                                                \
        MODE(flags, mode)                                               \
        if (!next) next = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return next(folder, redirect(path), flags, mode);               \
    }

#define FOPEN(name)                                                     \
    FILE *name(const char *path, const char *mode) {                    \
        static FILE *(*next)(const char *, const char *);               \
        if (!next) next = (FILE * (*)(const char *, const char *))dlsym(RTLD_NEXT, #name); \
        return next(redirect(path), mode);                              \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)
