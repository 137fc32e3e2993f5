/* example.c: the smallest program that runs this model.
 *
 *     cc example.c -I include lib/libmodel.a -lm -lpthread -o example && ./example weights.bin
 */
#include "model.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    bevel_model *model;
    bevel_status status = bevel_open(argc > 1 ? argv[1] : "weights.bin", NULL, 1, &model);
    if (status != BEVEL_OK) {
        fprintf(stderr, "%s\n", bevel_strerror(status));
        return 1;
    }
    /* Write the inputs where the model reads them: `data` points into its arena. Zeros stand for your data here; float values go
     * through bevel_set_input_f32. */
    for (size_t i = 0; i < bevel_num_inputs(); i++)
        memset(bevel_input(model, i)->data, 0, bevel_input(model, i)->nbytes);
    bevel_state_reset(model); /* states, if there are any, are zero again: bevel_open did this, and bevel_run hands them on */

    status = bevel_run(model);
    if (status != BEVEL_OK) {
        fprintf(stderr, "%s\n", bevel_strerror(status));
        return 1;
    }
    for (size_t i = 0; i < bevel_num_outputs(); i++) {
        const bevel_tensor *output = bevel_output(model, i);
        const unsigned char *bytes = output->data;
        printf("%s: %zu bytes, first", output->name, output->nbytes);
        for (size_t j = 0; j < output->nbytes && j < 8; j++)
            printf(" %02x", bytes[j]);
        printf("\n");
    }
    bevel_close(model);
    return 0;
}
