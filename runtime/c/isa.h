/* isa.h: does this machine have the instruction sets the model was compiled for? */
#ifndef BEVEL_ISA_H
#define BEVEL_ISA_H

#include "graph.h"

/* BEVEL_OK, or BEVEL_E_ISA. Asks the kernel for the AMX tile state when `required` holds BEVEL_ISA_AMX_INT8, so it must run before any
 * thread is made. */
bevel_status bevel_isa_check(uint32_t required);

#endif
