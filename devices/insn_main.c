/* Runs a model a given number of times: from the first call of bevel_run to that of bevel_close, it does nothing else.
 *
 *     insn_main steps                                      prints the addresses of each step's function, bevel_run and bevel_close
 *     insn_main run WEIGHTS COUNT INPUTS [EXTENT...]       INPUTS: the bytes of all inputs, one after the other
 */
#include "bevel.h"
#include "graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what)
{
    fprintf(stderr, "insn_main: %s\n", what);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "steps") == 0) {
        for (uint32_t i = 0; i < bevel_the_graph.steps; i++)
            printf("%zx\n", (size_t)bevel_the_graph.step[i].call);
        printf("%zx\n%zx\n", (size_t)bevel_run, (size_t)bevel_close);
        return 0;
    }
    if (argc < 5 || strcmp(argv[1], "run") != 0)
        return fail("expected: steps, or run WEIGHTS COUNT INPUTS [EXTENT...]");
    bevel_model *model;
    bevel_status status = bevel_open(argv[2], NULL, 1, &model);
    for (int i = 5; status == BEVEL_OK && i < argc; i++)
        status = bevel_set_dim(model, (size_t)(i - 5), atoi(argv[i]));
    FILE *inputs = fopen(argv[4], "rb");
    if (!inputs)
        return fail("the inputs cannot be read");
    for (size_t i = 0; status == BEVEL_OK && i < bevel_num_inputs(); i++) {
        const bevel_tensor *input = bevel_input(model, i);
        if (fread(input->data, 1, input->nbytes, inputs) != input->nbytes)
            return fail("the inputs are too short");
    }
    fclose(inputs);
    for (long left = atol(argv[3]); status == BEVEL_OK && left > 0; left--)
        status = bevel_run(model);
    if (status != BEVEL_OK)
        return fail(bevel_strerror(status));
    bevel_close(model);
    return 0;
}
