"""int8 artifacts of real models: integers only, the same bytes on every device profile; what compiling and running one costs.

    python -m benchmarks.breadth.int8 --models DIR --data DIR [--only NAME ...] [--device NAME ...] [--samples 20] [--emulated 2]
        [--no-identity] [--no-cost] [--write]

--models and --data are those of benchmarks.breadth.fp32. Every output byte of every sample is compared with the interpreter's;
other samples calibrate. The recogniser is cut in front of its attention, at the last value that everything behind it depends on.
--write replaces int8.md beside this file. Exit status 1: a byte differs, or a graph is not integer-only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.shape_inference import infer_shapes
from onnx.utils import Extractor

from benchmarks.breadth import inputs
from benchmarks.breadth.fp32 import IMAGES, LINE_HEIGHT, LINE_WIDTH, SUBJECTS
from benchmarks.identity.identity import PROFILES
from benchmarks.latency.host import cold_start_ms
from bevel.benchmarking.host import measure_host
from bevel.benchmarking.peers.preparation import find_peers
from bevel.compiler import Options, bind, build, load_graph, prepare
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.errors import DeviceError, UsageError
from bevel.ir import interp
from bevel.ir.graph import Graph
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]
RESULTS = Path(__file__).with_suffix(".md")
CALIBRATION = 100
# Whose whole compile, size and start are measured.
MEASURED = "efficientnet_lite0"


@dataclass(frozen=True)
class Subject:
    """A float model and its data.

    Attributes:
        model: its ONNX file.
        calibration: directory of one array of samples.
        samples: [samples, ...] to judge by, named like the input.
        dims: extents of symbolic dimensions.
    """

    model: Path
    calibration: Path
    samples: Mapping[str, Array]
    dims: Mapping[str, Any] = field(default_factory=dict)


def _joined(samples: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _lines_of_text(count: int) -> Iterator[str]:
    """Two or three words each, none of which the benchmark's texts hold."""
    words = itertools.cycle([word for text in (inputs.PARAGRAPH, *inputs.SENTENCES) for word in text.split() if word.isascii()])
    for index in range(count):
        yield " ".join(itertools.islice(words, 2 + index % 2))


def in_front_of_attention(graph: Graph) -> str:
    """Name of the last value before the first product of activations that everything behind it depends on alone."""
    waiting = {value: len(value.users) for value in graph.inputs}
    found = graph.inputs[0]
    for node in graph.nodes:
        if node.op == "MatMul":
            return found.name
        for value in dict.fromkeys(node.inputs):
            if value in waiting:
                waiting[value] -= 1
                if not waiting[value]:
                    del waiting[value]
        waiting |= {value: len(value.users) for value in node.outputs if value.users}
        if len(waiting) == 1:
            (found,) = waiting
    raise UsageError(f"{graph.name!r} multiplies no activations with each other: there is no attention to cut in front of")


def _backbone(model: Path, dims: Mapping[str, Any], target: Path) -> Path:
    """The part of an ONNX model in front of its attention."""
    cut = in_front_of_attention(load_graph(model, dims))
    whole = infer_shapes(onnx.load(model))
    onnx.save(Extractor(whole).extract_model([value.name for value in whole.graph.input], [cut]), target)
    return target


def subject(name: str, models: Path, data: Path, count: int, folder: Path) -> Subject:
    """Model, calibration and `count` samples at most."""
    model, dims = models / f"{name}.onnx", SUBJECTS[name].dims
    if name == "ppocr_v4_rec":
        model = _backbone(model, dims, folder / f"{name}.onnx")
        observed = list(inputs.rendered_texts(LINE_HEIGHT, LINE_WIDTH, list(_lines_of_text(CALIBRATION))))
        judged = list(inputs.rendered_texts(LINE_HEIGHT, LINE_WIDTH))[:count]
    else:
        photographs = list(SUBJECTS[name].samples(models, data, CALIBRATION + count))
        observed, judged = photographs[:CALIBRATION], photographs[CALIBRATION:]
    calibration = folder / f"{name}-calibration"
    calibration.mkdir()
    for value, array in _joined(observed).items():
        np.save(calibration / f"{value}.npy", array)
    return Subject(model, calibration, _joined(judged), dims)


def integer_graph(one: Subject) -> Graph:
    """The INTEGER graph that every device gets."""
    graph = prepare(load_graph(one.model, one.dims), Options("host", calibration=one.calibration))
    return bind(graph, {})


def interpreted(graph: Graph, samples: Mapping[str, Array]) -> Array:
    """Output codes, sample by sample."""
    (name,), (output,) = samples, graph.outputs
    return np.concatenate([interp.run(graph, {name: x[None]})[output.name] for x in samples[name]])


def on_device(artifact: Artifact, profile: str, samples: Mapping[str, Array], emulated: int) -> tuple[Array, str]:
    """Output codes of the artifact on a device, and how they came about.

    Raises:
        DeviceError: the device cannot run it.
    """
    (name,) = samples
    with resolve_transport(load_profile(profile)) as transport:
        count = emulated if transport.emulated else len(samples[name])
        # A leading axis beside the model's own: one process runs all samples.
        found = DeviceRunner(artifact, transport).run({name: samples[name][:count, None]}, batch=True)
        (codes,) = found.values()
        return codes, "emulated" if transport.emulated else "native"


def identity(name: str, one: Subject, devices: Sequence[str], emulated: int, folder: Path) -> Iterator[tuple[str, bool]]:
    """Rows of the first table, and whether each is as it must be."""
    graph = integer_graph(one)
    reference = interpreted(graph, one.samples)
    for device in devices:
        artifact = build(
            graph, load_profile(device), folder / f"{name}-{device}.bevel", Options(device, calibration=one.calibration)
        )
        manifest = artifact.manifest
        islands = ", ".join(manifest["float_islands"]) or "none"
        pure = bool(manifest["integer_only"]) and not manifest["float_islands"]
        derived = Counter("derived" if layer["kernel"] in ("vector", "generic") else "own" for layer in manifest["layers"])
        try:
            found, how = on_device(artifact, device, one.samples, emulated)
        except DeviceError as refused:
            count, differing, how = 0, 0, f"not run: {refused}"
        else:
            found = found.reshape(-1, *reference.shape[1:])
            count, differing = len(found), int((found != reference[: len(found)]).sum())
        size = f"{manifest['bytes']['total'] / 1e6:.2f} MB"
        layers = f"{derived['own']} + {derived['derived']}"
        row = f"| {name} | {device} | {islands} | {layers} | {size} | {count} | {differing} | {how} |"
        yield row, pure and not differing


def _compile(one: Subject, cache: Path, output: Path) -> tuple[float, float]:
    """Wall and processor seconds of `bevel compile` for this machine, with all processes that it starts."""
    command = [sys.executable, "-m", "bevel", "compile", str(one.model), "--device", "host", "--calib", str(one.calibration)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "BEVEL_CACHE_DIR": str(cache)}
    subprocess.run([*command, "-o", str(output), "--json"], check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_rss_mb(artifact: Artifact) -> float:
    """Largest resident set of bevel-run, in MB, as it reads it from Linux: a child's rusage would count its parent's."""
    command = [str(artifact.runner), "--bench", "--blocks", "2"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return int(json.loads(lines[-1])["rss_kib"]) * 1024 / 1e6


def costs(name: str, one: Subject, folder: Path) -> Iterator[str]:
    """The other tables: the whole compile, sizes, start, memory, latency."""
    cache, output = folder / "empty-cache", folder / f"{name}.bevel"
    cold, again = _compile(one, cache, output), _compile(one, cache, output)
    artifact = Artifact.open(output)
    files = {path.relative_to(output).as_posix(): path.stat().st_size for path in output.rglob("*") if path.is_file()}
    shipped = artifact.manifest["bytes"]
    load = os.getloadavg()[0]
    yield from ("", f"## {name} on this machine", "", "| | found | allowed |", "|---|---|---|")
    yield f"| whole compile, empty cache, {CALIBRATION} samples | {cold[0]:.1f} s ({cold[1]:.1f} s of processor time) | 90 s |"
    yield f"| the same again | {again[0]:.2f} s ({again[1]:.2f} s of processor time) | 5 s |"
    yield f"| library + weights | {shipped['library'] / 1e6:.2f} + {shipped['weights'] / 1e6:.2f} MB | 6 MB |"
    yield f"| all files of the artifact | {sum(files.values()) / 1e6:.2f} MB | 6 MB |"
    yield f"| bevel-run from start to end, with one input and output file | {cold_start_ms(artifact, folder):.2f} ms | 30 ms |"
    yield f"| peak resident memory of bevel-run | {peak_rss_mb(artifact):.1f} MB | 25 MB |"
    yield from ("", f"Load of the machine meanwhile: {load:.1f} on {os.cpu_count()} cores.", "", "| file | bytes |", "|---|---|")
    yield from (f"| {file} | {size:,} |" for file, size in sorted(files.items(), key=lambda item: -item[1]))
    yield f"| all | {sum(files.values()):,} |"
    sample = {value: array[:1] for value, array in one.samples.items()}
    peers = find_peers(("onnxruntime", "onnxruntime-int8"), one.model, artifact, sample, one.calibration)
    contest = measure_host(artifact, sample, peers, threads=1, processes=3, rounds=20)
    yield from ("", "| one thread, interleaved | ms | ratio to bevel |", "|---|---|---|")
    yield f"| bevel int8 | {contest.ours.median:.2f} | 1 |"
    yield from (f"| {peer} | {latency.median:.2f} | {contest.ratios[peer]:.2f} |" for peer, latency in contest.peers.items())


def _head() -> list[str]:
    return [
        "# int8 artifacts of real models",
        "",
        f"`python -m benchmarks.breadth.int8 --models DIR --data DIR --write`, {date.today().isoformat()}: {platform.machine()}, "
        f"{load_profile('host').description}; numpy {np.__version__}, onnxruntime {version('onnxruntime')}, "
        f"TVM {version('apache-tvm')}.",
        "",
        f"Calibrated on {CALIBRATION} samples, compared on others: photographs, and rendered text for the recogniser, which is "
        "cut in front of its attention. Every output byte is compared with the interpreter's. Layers: with kernels written for "
        "the instruction set + with derived ones.",
        "",
        "| model | device | float islands | layers | library + weights | samples | differing bytes | |",
        "|---|---|---|---|---|---|---|---|",
    ]


def main() -> int:
    """Print the tables; exit 1 if a byte differs or a graph is not integer-only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="directory of ONNX files")
    parser.add_argument("--data", type=Path, required=True, help=f"directory of {IMAGES}")
    choices = (MEASURED, "mobilenet_v2", "ppocr_v4_rec")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices, help="some of the models")
    parser.add_argument("--device", nargs="+", default=PROFILES, help="device profiles")
    parser.add_argument("--samples", type=int, default=20, help="samples where code runs natively")
    parser.add_argument("--emulated", type=int, default=2, help="samples where it is emulated")
    parser.add_argument("--no-identity", dest="identity", action="store_false", help="leave the comparison of bytes out")
    parser.add_argument("--no-cost", dest="cost", action="store_false", help=f"leave the costs of {MEASURED} out")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    lines, right = _head(), True

    def add(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        subjects = {name: subject(name, args.models, args.data, args.samples, Path(scratch)) for name in args.only}
        for name in args.only if args.identity else ():
            for row, as_it_must_be in identity(name, subjects[name], args.device, args.emulated, Path(scratch)):
                add(row)
                right = right and as_it_must_be
        if args.cost and MEASURED in subjects:
            for line in costs(MEASURED, subjects[MEASURED], Path(scratch)):
                add(line)
    if args.write:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
