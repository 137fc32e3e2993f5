"""Latency on this machine against onnxruntime, cold start, and the time of a second compile.

    python -m benchmarks.latency.host [--threads 1] [--processes 7] [--write]

Everything runs interleaved, a process for each contestant per repetition, inputs bound once, through the same caller. int8 is
compared with onnxruntime's fp32, with its own static quantization of the same model and, where the model comes quantized, with
that file.
--write replaces host.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.identity.identity import ROOT, real_inputs
from bevel.benchmarking.host import measure_host
from bevel.benchmarking.peers.preparation import find_peers
from bevel.compiler import Options, bind, build, compile_model, load_graph, prepare
from bevel.devices.profile import load_profile
from bevel.runtime.artifact import Artifact
from examples.prepare_cifar10 import IMAGES, decode

RESULTS = Path(__file__).with_suffix(".md")
MODELS = {
    "resnet8_cifar10_float": "resnet8_cifar10_int8_qdq",
    "resnet20_cifar10": None,
    "kws_dscnn_float": "kws_dscnn_int8_qdq",
}
COLD_STARTS = 40
CALIBRATION = 128


def cold_start_ms(artifact: Artifact, folder: Path) -> float:
    """Median milliseconds from starting bevel-run to its end, one output written."""
    tensor = artifact.manifest["inputs"][0]
    source = folder / "in.npy"
    np.save(source, np.zeros(tensor["shape"], tensor["dtype"]))
    command = [str(artifact.runner), "--input", str(source), "--output", str(folder / "out.npy")]
    times = []
    for _ in range(COLD_STARTS):
        (folder / "out.npy").unlink(missing_ok=True)
        start = time.perf_counter()
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
        _, status = os.waitpid(pid, 0)
        times.append((time.perf_counter() - start) * 1e3)
        if status:
            raise SystemExit(f"{command} failed with {status}")
    return statistics.median(times)


def second_compile_s(model: Path, calibration: Path, folder: Path) -> float:
    """Seconds of `bevel compile` as a process when nothing changed."""
    command = [sys.executable, "-m", "bevel", "compile", str(model), "--device", "host", "--calib", str(calibration)]
    command += ["-o", str(folder / "again.bevel"), "--json"]
    subprocess.run(command, check=True, capture_output=True)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS.name}")
    args = parser.parse_args()
    images, _ = decode(IMAGES, 256)
    lines = [
        "# Latency on one host against onnxruntime",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {load_profile('host').description}",
        f"onnxruntime {version('onnxruntime')}, TVM {version('apache-tvm')}, {args.threads} thread, "
        f"median of {args.processes} processes, interleaved.",
        "`python -m benchmarks.latency.host --write`. Ratio = onnxruntime's median / bevel's median: above 1, bevel is faster.",
        "",
        "| model | bits | bevel ms (95 % interval) | peer | peer ms | ratio |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    tail = ["", "| model | bits | library + weights, bytes | cold start, ms | second compile, s |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, quantized in MODELS.items():
            model = ROOT / "models" / f"{name}.onnx"
            inputs = real_inputs(name, images)
            graph = load_graph(model)
            value = graph.inputs[0].name
            calibration = folder / f"{name}.npz"
            np.savez(calibration, **{value: inputs[:CALIBRATION]})
            for bits in ("fp32", "8"):
                options = Options("host", bits, calibration)
                if bits == "8":
                    artifact, _ = compile_model(model, folder / f"{name}-8.bevel", options)
                else:
                    artifact = build(
                        bind(prepare(load_graph(model), options), {}), load_profile("host"), folder / f"{name}.bevel", options
                    )
                sample = {value: inputs[:1]}
                names = ["onnxruntime"] if bits == "fp32" else ["onnxruntime", "onnxruntime-int8"]
                peers = find_peers(names, model, artifact, sample, calibration)
                if bits == "8" and quantized is not None:
                    other = load_graph(ROOT / "models" / f"{quantized}.onnx").inputs[0]
                    codes = {other.name: np.zeros([1, *inputs.shape[1:]], other.type.dtype)}
                    file = ROOT / "models" / f"{quantized}.onnx"
                    (peer,) = find_peers(["onnxruntime"], file, artifact, codes, None).values()
                    peers["onnxruntime, TFLite int8 model"] = peer
                contest = measure_host(artifact, sample, peers, threads=args.threads, processes=args.processes)
                ours = contest.ours
                mine = f"{ours.median:.4f} ({ours.ci95[0]:.4f} to {ours.ci95[1]:.4f})"
                for peer, latency in contest.peers.items():
                    lines.append(f"| {name} | {bits} | {mine} | {peer} | {latency.median:.4f} | {contest.ratios[peer]:.2f} |")
                    print(lines[-1], flush=True)
                again = f"{second_compile_s(model, calibration, folder):.2f}" if bits == "8" else "-"
                size = artifact.manifest["bytes"]["total"]
                tail.append(f"| {name} | {bits} | {size:,} | {cold_start_ms(artifact, folder):.2f} | {again} |")
    print("\n".join(tail))
    if args.write:
        RESULTS.write_text("\n".join([*lines, *tail]) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
