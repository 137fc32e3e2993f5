/* A plugin of qemu's TCG (its documented plugin interface) that counts how often each translated block runs.
 *
 * Arguments: out=FILE, where the counts go at exit, and markers=FILE, hexadecimal addresses one a line. Executions are counted
 * apart for each scope: scope 0 until the first marker's block runs, then scope i + 1 since the i-th marker's block last ran.
 * Markers are expected in their order, again and again, so that one function called for several layers is told apart by position.
 * Each line of FILE: scope, address, instructions of the block, executions, and with the argument code=on the instructions' bytes
 * in hexadecimal. What other threads than the program's first execute is not counted.
 *
 * The declarations of qemu's functions below are written from its documentation; qemu exports them to plugins.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
enum { NO_REGISTERS = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*callback)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*callback)(unsigned, void *), int flags, void *data);
extern void qemu_plugin_register_atexit_cb(plugin_id id, void (*callback)(plugin_id, void *), void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
extern void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = BEVEL_QEMU_PLUGIN_VERSION;

typedef struct block {
    uint64_t address;
    size_t instructions;
    bool marker;
    unsigned char *code; /* kept with code=on; the bytes may be gone when the program ends */
    size_t code_size;
    uint64_t executions[]; /* by scope */
} block;

static FILE *out;
static uint64_t *markers;
static size_t marker_count;
static size_t scope;
static bool keep_code;

/* Open addressing by address and length: qemu may translate the same block again after it threw its translation away. */
static block **table;
static size_t capacity, used;

static void fail(const char *what)
{
    fprintf(stderr, "insn_plugin: %s\n", what);
    exit(1);
}

static size_t place(uint64_t address, size_t instructions)
{
    size_t i = (address * 0x9E3779B97F4A7C15u + instructions) & (capacity - 1);
    while (table[i] && (table[i]->address != address || table[i]->instructions != instructions))
        i = (i + 1) & (capacity - 1);
    return i;
}

static void grow(void)
{
    block **old = table;
    size_t before = capacity;
    capacity = capacity ? 2 * capacity : 4096;
    table = calloc(capacity, sizeof *table);
    if (!table)
        fail("no memory");
    for (size_t i = 0; i < before; i++)
        if (old[i])
            table[place(old[i]->address, old[i]->instructions)] = old[i];
    free(old);
}

static block *find(uint64_t address, size_t instructions)
{
    if (2 * (used + 1) > capacity)
        grow();
    size_t i = place(address, instructions);
    if (!table[i]) {
        block *made = calloc(1, sizeof *made + (marker_count + 1) * sizeof *made->executions);
        if (!made)
            fail("no memory");
        made->address = address;
        made->instructions = instructions;
        for (size_t m = 0; m < marker_count; m++)
            made->marker |= markers[m] == address;
        table[i] = made;
        used++;
    }
    return table[i];
}

static void keep(block *b, const struct qemu_plugin_tb *tb)
{
    for (size_t i = 0; i < b->instructions; i++) {
        const struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        size_t size = qemu_plugin_insn_size(insn);
        const void *bytes = qemu_plugin_insn_haddr(insn);
        b->code = realloc(b->code, b->code_size + size);
        if (!b->code || !bytes)
            fail("no memory for code, or no code");
        memcpy(b->code + b->code_size, bytes, size);
        b->code_size += size;
    }
}

static void executed(unsigned cpu, void *data)
{
    block *b = data;
    if (cpu != 0)
        return;
    if (b->marker) {
        /* Scope s is that of marker s - 1, so the next one expected is number s. */
        size_t next = scope;
        do
            next = next % marker_count + 1;
        while (markers[next - 1] != b->address);
        scope = next;
    }
    b->executions[scope]++;
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    block *b = find(qemu_plugin_tb_vaddr(tb), qemu_plugin_tb_n_insns(tb));
    if (keep_code && !b->code)
        keep(b, tb);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, NO_REGISTERS, b);
}

static void finished(plugin_id id, void *data)
{
    (void)id;
    (void)data;
    for (size_t i = 0; i < capacity; i++)
        for (size_t s = 0; table[i] && s <= marker_count; s++)
            if (table[i]->executions[s]) {
                const block *b = table[i];
                fprintf(out, "%zu %" PRIx64 " %zu %" PRIu64 " ", s, b->address, b->instructions, b->executions[s]);
                for (size_t byte = 0; byte < b->code_size; byte++)
                    fprintf(out, "%02x", b->code[byte]);
                fputc('\n', out);
            }
    if (fclose(out) != 0)
        fail("the counts could not be written");
}

static void read_markers(const char *path)
{
    FILE *file = fopen(path, "r");
    uint64_t address;
    if (!file)
        fail("the markers cannot be read");
    while (fscanf(file, "%" SCNx64, &address) == 1) {
        markers = realloc(markers, (marker_count + 1) * sizeof *markers);
        if (!markers)
            fail("no memory");
        markers[marker_count++] = address;
    }
    fclose(file);
}

EXPORT int qemu_plugin_install(plugin_id id, const struct qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0)
            out = fopen(argv[i] + 4, "w");
        else if (strncmp(argv[i], "markers=", 8) == 0)
            read_markers(argv[i] + 8);
        else if (strcmp(argv[i], "code=on") == 0)
            keep_code = true;
    }
    if (!out)
        fail("no file to write to");
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
