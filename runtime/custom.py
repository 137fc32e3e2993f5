"""Wrappers of custom operators: from the kernel ABI to the user's C function (`c/bevel_custom.h`).

In: the custom kernels of a schedule. Out: C text for model.c, and the user's files to compile and link.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bevel.backends.custom import NAME
from bevel.backends.kernel import Buf, NodeProblem
from bevel.backends.schedule import Kernel
from bevel.ir.ops.custom import CUSTOM


def is_custom(kernel: Kernel) -> bool:
    """True when the kernel is a user's C function."""
    return kernel.generator == NAME


def sources(kernels: Iterable[Kernel]) -> list[Path]:
    """The C files that `kernels` need, each once."""
    found = {
        CUSTOM[kernel.problem.op].source for kernel in kernels if is_custom(kernel) and isinstance(kernel.problem, NodeProblem)
    }
    return sorted(found)


def wrappers(kernels: Iterable[Kernel]) -> list[str]:
    """Lines of C: one function with the kernel ABI for each custom kernel; none when there are no custom kernels."""
    chosen = [kernel for kernel in kernels if is_custom(kernel)]
    if not chosen:
        return []
    lines = ["#define BEVEL_CUSTOM_NO_FLOAT", '#include "bevel_custom.h"', ""]
    names = {CUSTOM[k.problem.op].op_type for k in chosen if isinstance(k.problem, NodeProblem)}
    lines += [f"int32_t {name}(const bevel_custom_call *call);" for name in sorted(names)]
    for kernel in chosen:
        lines += ["", *_wrapper(kernel)]
    return [*lines, ""]


def _wrapper(kernel: Kernel) -> list[str]:
    from bevel.runtime.codegen import c_string

    problem = kernel.problem
    assert isinstance(problem, NodeProblem)
    inputs = [f"x{i}" for i in range(len(problem.inputs))]
    outputs = [f"y{i}" for i in range(len(problem.outputs))]
    parameters = [f"const void *{name}" for name in inputs] + [f"const void *{name}" for name in outputs]
    out = [
        f"int32_t {kernel.symbol}({', '.join(parameters)}, int32_t lo, int32_t hi, void *scratch)",
        "{",
        "    (void)scratch;",
    ]
    for name, buf in zip((*inputs, *outputs), (*problem.inputs, *problem.outputs), strict=True):
        out.append(f"    static const int64_t {name}_shape[] = {{{', '.join(map(str, buf.shape)) or '0'}}};")
    attributes = problem.attrs.as_dict()
    entries = []
    for i, (name, value) in enumerate(sorted(attributes.items())):
        kind, length = _attribute_data(value)
        if kind == "text":
            entries.append(f"{{{c_string(name)}, 0, 0, {c_string(str(value))}, {length}}}")
            continue
        values = value if isinstance(value, list) else [value]
        spelled = [f"{v}LL" if kind == "integers" else float(v).hex() for v in values] or ["0"]
        out.append(f"    static const {'int64_t' if kind == 'integers' else 'double'} a{i}[] = {{{', '.join(spelled)}}};")
        entries.append(f"{{{c_string(name)}, {f'a{i}, 0' if kind == 'integers' else f'0, a{i}'}, 0, {length}}}")
    entries.append("{0, 0, 0, 0, 0}")
    out += [
        f"    static const bevel_custom_attribute attributes[] = {{{', '.join(entries)}}};",
        *_tensors("inputs", inputs, problem.inputs),
        *_tensors("outputs", outputs, problem.outputs),
        f"    const bevel_custom_call call = {{inputs, outputs, attributes, {len(inputs)}, {len(outputs)}, {len(attributes)}}};",
        f"    return lo < hi ? {CUSTOM[problem.op].op_type}(&call) : 0;",
        "}",
    ]
    return out


def _attribute_data(value: Any) -> tuple[str, int]:
    """Which member of bevel_custom_attribute holds `value`, and how many elements it has."""
    if isinstance(value, str):
        return "text", len(value.encode())
    values = value if isinstance(value, list) else [value]
    return ("integers" if all(isinstance(v, int) for v in values) else "numbers"), len(values)


def _tensors(kind: str, names: list[str], bufs: tuple[Buf, ...]) -> list[str]:
    rows = [
        f"{{(void *)(uintptr_t){name}, {name}_shape, {len(buf.shape)}, BEVEL_{buf.dtype.upper()}}}"
        for name, buf in zip(names, bufs, strict=True)
    ]
    return [f"    const bevel_custom_tensor {kind}[] = {{{', '.join(rows)}}};"]
