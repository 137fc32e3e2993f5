"""Generated C: hostile names stay data, and a schedule that breaks its contract is refused with the step's name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bevel.backends.schedule import IoTensor, Place
from bevel.runtime.artifact import Artifact
from bevel.runtime.codegen import check_schedule, model_c, model_h, required_features
from bevel.runtime.host import HostModel
from bevel.runtime.toolchain import find_toolchain, host_arch

EVIL = 'x*/ int evil; /*"\\\n??/ %s \x01 é 😀 //'


def test_hostile_names(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """Names from a model file reach users byte for byte and never become code, comments' ends or format strings."""
    schedule = tiny.schedule
    steps = tuple(replace(step, layer=f"{EVIL}{i}", op=EVIL) for i, step in enumerate(schedule.steps))
    outputs = (replace(schedule.outputs[0], name=EVIL), schedule.outputs[1])
    model = replace(tiny, schedule=replace(schedule, name=EVIL, steps=steps, outputs=outputs))
    golden = [(i, {EVIL: o["rows"], "max": o["max"]}) for i, o in tiny.golden()]
    artifact = write_tiny(model, tmp_path / "evil.bevel", golden=golden)
    with HostModel(artifact) as host:
        assert [step.layer for step in host.profile()] == [step.layer for step in steps]
        assert host.output_tensors[0].name == EVIL
    subprocess.run([artifact.runner, "--profile", "--runs", "1"], check=True, capture_output=True)
    flags = ["-fsyntax-only", "-std=c11", "-Wall", "-Wextra", "-Werror", "-trigraphs"]
    header = artifact.path / "include" / "model.h"
    subprocess.run([*find_toolchain(host_arch()).shared, *flags, str(header)], check=True)


def test_readable(tiny: Any) -> None:
    """One documented function for each step, and a table of them."""
    text = model_c(tiny.schedule)
    assert "/* 1: gemm (IntGemm+Requantize, w8a8) */" in text
    assert "return bevel_k_gemm(arena + 1024, weights + 256, arena + 2112, lo, hi, scratch);" in text
    assert "{step_1, 64}," in text
    assert " * input 0: x, uint8 1x64x16, real = 0.1 * (code - 128)" in model_h(tiny.schedule)


def test_contract_violations(tiny: Any) -> None:
    """Each one is named: they are defects of lowering, found before any C compiler runs."""
    schedule = tiny.schedule
    step = schedule.steps[1]

    def step_with(**changes: Any) -> Any:
        return replace(schedule, steps=(replace(step, **changes),))

    far = IoTensor("far", (4,), "int32", Place("arena", 2680))
    cases = {
        "bevel_k_none is not in": step_with(symbol="bevel_k_none"),
        "3 arguments": replace(schedule, steps=(replace(step, args=step.args[:2]), step)),
        "extent": step_with(extent=2**31),
        "scratch": step_with(scratch_bytes=128),
        "unknown space": step_with(args=(Place("stack", 0), *step.args[1:])),
        "in weights": step_with(args=(Place("weights", 10**6), *step.args[1:])),
        "in arena": replace(schedule, outputs=(far,)),
        "dtype": replace(schedule, outputs=(replace(far, dtype="complex64"),)),
        "expected arena": replace(schedule, inputs=(IoTensor("i", (1,), "int8", Place("weights", 0)),)),
        "not a multiple of 64": replace(schedule, scratch_bytes=65),
        "unknown ISA features": replace(schedule, target=replace(schedule.target, features=frozenset({"mmx9"}))),
        "C identifier": replace(schedule, kernels=(*schedule.kernels, replace(schedule.kernels[0], symbol="a b"))),
    }
    for message, bad in cases.items():
        with pytest.raises(ValueError, match=message):
            check_schedule(bad)
    with pytest.raises(ValueError, match="no object for kernels bevel_k_gemm"):
        check_schedule(schedule, ["bevel_k_lut", "bevel_k_max"])


def test_amx_is_required_only_where_used(tiny: Any) -> None:
    """Tile permission is refused by sandboxes, so only AMX kernels ask for it."""
    target = replace(tiny.schedule.target, features=frozenset({"avx2", "amx_int8"}))
    schedule = replace(tiny.schedule, target=target)
    assert required_features(schedule) == ["avx2"]
    kernels = (replace(schedule.kernels[0], generator="conv_amx_int8"), *schedule.kernels[1:])
    assert required_features(replace(schedule, kernels=kernels)) == ["amx_int8", "avx2"]
    assert "BEVEL_ISA_AMX_INT8 | BEVEL_ISA_AVX2" in model_c(replace(schedule, kernels=kernels))
