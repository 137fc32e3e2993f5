"""ncnn, fp32: converted by pnnx. Its int8 tools are not in the Python package."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncnn
import numpy as np


def prepare(files: list[Path], precision: str, shapes: dict[str, list[int]], samples: list[Path], folder: Path) -> None:
    """Convert with fixed shapes, weights in fp32.

    Raises:
        ValueError: pnnx cannot convert it, or left layers that ncnn does not have.
    """
    program = Path(ncnn.__path__[0]).parent / "pnnx" / "pnnx"
    # pnnx leaves files beside the model whatever it is told, so it gets a copy.
    for file in files:
        shutil.copy(file, folder / file.name)
    given = ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes.values())
    names = ("ncnnparam=model.param", "ncnnbin=model.bin", "pnnxparam=x.pnnx.param", "pnnxbin=x.pnnx.bin")
    command = [str(program), files[0].name, f"inputshape={given}", "fp16=0", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    if done.returncode != 0:
        raise ValueError(f"pnnx ends with {done.returncode}: {said[-1] if said else 'no message'}")
    if missing := [line for line in said if "not supported" in line]:
        raise ValueError(f"ncnn has no counterpart: {missing[0]}")
    for file in folder.iterdir():
        if file.name not in ("model.param", "model.bin"):
            file.unlink()


def load(
    folder: Path, threads: int, inputs: dict[str, Any], outputs: list[str]
) -> tuple[Callable[[], None], Callable[[], list[Any]], dict[str, str]]:
    """A net whose inputs are matrices made once; each call makes the extractor ncnn needs."""
    net = ncnn.Net()
    net.opt.num_threads = threads
    # fp32 as it says: where the CPU converts fast, ncnn would store activations in half precision.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(folder / "model.param")) or net.load_model(str(folder / "model.bin")):
        raise ValueError("ncnn cannot load what pnnx made")
    # ncnn knows no batch axis. A Mat of an array borrows its memory; the clone has its own, aligned as ncnn likes it.
    given = {f"in{index}": ncnn.Mat(array[0]).clone() for index, array in enumerate(inputs.values())}
    wanted = [f"out{index}" for index in range(len(outputs))]
    found: dict[str, Any] = {}

    def call() -> None:
        extractor = net.create_extractor()
        for name, matrix in given.items():
            extractor.input(name, matrix)
        for name in wanted:
            found[name] = extractor.extract(name)[1]

    return call, lambda: [np.array(found[name])[None] for name in wanted], {"version": ncnn.__version__}
