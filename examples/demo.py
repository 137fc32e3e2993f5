"""The main job from end to end, as `make demo` runs it: a real CNN on this host and on an aarch64 board.

    python examples/demo.py [--board PROFILE] [--out DIR]

Compiles MLPerf Tiny's ResNet-8 (CIFAR-10) to integer-only code for this machine and for a Raspberry Pi 4, runs both, the board
over SSH (an emulated one unless --board names a profile with an address), and shows accuracy, latency, profile and sizes. Every
step is a `bevel` command that is printed before it runs; the HTML reports stay in the output directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bevel.compiler import Options, bind, load_graph, prepare
from bevel.devices.board import EmulatedBoard
from bevel.devices.cost import Roofline, graph_cost
from bevel.devices.profile import Profile, load_profile, save_profile
from bevel.report import Findings, write_report
from bevel.runtime.artifact import Artifact

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "resnet8_cifar10_float.onnx"
CALIBRATION_IMAGES = 128
# Emulation is slow and deterministic: a few images prove that the board computes what the host does.
BOARD_IMAGES = 32


def bevel(*args: str) -> dict[str, object]:
    """Run a verb with --json, echoing the command."""
    print(f"\n$ bevel {shlex.join(args)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "bevel", *args, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    document: dict[str, object] = json.loads(done.stdout)
    return document


@contextlib.contextmanager
def the_board(name: str | None, folder: Path) -> Iterator[tuple[Profile, str]]:
    """The board's profile and what --device takes for it; without a name, an emulated Raspberry Pi 4 behind a real SSH server."""
    if name is not None:
        yield load_profile(name), name
        return
    with EmulatedBoard("raspberry-pi-4") as board:
        yield board.profile, str(save_profile(board.profile, folder / f"{board.profile.name}.toml"))


def prepare_data(folder: Path) -> tuple[Path, Path]:
    """Calibration and test data from the images that ship with bevel."""
    whole = folder / "cifar10.npz"
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / "prepare_cifar10.py"), "--for", "resnet8", "-o", str(whole)], check=True
    )
    with np.load(whole) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    calibration, test = folder / "calibration.npz", folder / "test.npz"
    np.savez(calibration, **{n: a[:CALIBRATION_IMAGES] for n, a in data.items() if n != "label"})
    np.savez(test, **{n: a[CALIBRATION_IMAGES:] for n, a in data.items()})
    return calibration, test


def show(title: str, compiled: dict[str, object], evaluated: dict[str, object], bench: dict[str, object]) -> None:
    """One paragraph of results."""
    size, latency = compiled["bytes"], bench["latency_ms"]
    assert isinstance(size, dict)
    assert isinstance(latency, dict)
    baseline = evaluated["baseline"]
    assert isinstance(baseline, dict)
    print(f"\n{title}")
    print(f"  library {size['library']:,} bytes, weights {size['weights']:,} bytes, integer only: {compiled['integer_only']}")
    print(
        f"  top-1 {100 * evaluated['value']:.2f} % on {evaluated['n']} images (fp32 {100 * baseline['value']:.2f} %), "  # type: ignore[operator]
        f"same choice as fp32 on {100 * evaluated['agreement']:.2f} %"  # type: ignore[operator]
    )
    print(f"  latency {latency['median']:.3f} ms ({bench['provenance']})")


def report(artifact: Path, profile: Profile, bench: dict[str, object], layers: dict[str, object], lines: list[str]) -> Path:
    """Rewrite the artifact's report with what was measured; returns its path."""
    graph = bind(prepare(load_graph(MODEL), Options("host", "fp32")), {})
    predicted = sum(layer.bits["w8a8"].ms for layer in graph_cost(graph, Roofline(profile), ("fp32", "w8a8")))
    peers = bench["peers"]
    assert isinstance(peers, dict)
    rows = layers["layers"]
    assert isinstance(rows, list)
    findings = Findings(
        device=str(bench["device"]),
        provenance=str(bench["provenance"]),
        latency_ms=bench["latency_ms"],  # type: ignore[arg-type]
        layer_ms=[row["ms"] for row in rows],
        predicted_ms=predicted,
        peers={name: peer["ratio"] for name, peer in peers.items()},
        accuracy=lines,
    )
    write_report(Artifact.open(artifact), findings)
    return artifact / "report.html"


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", help="device profile with an SSH address (default: an emulated Raspberry Pi 4)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out", help="where artifacts and reports go")
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    calibration, test = prepare_data(out)

    costs = bevel("cost", str(MODEL), "--device", "raspberry-pi-4")
    print(f"  predicted on a Raspberry Pi 4 (static): {costs['total_ms']} ms")

    with the_board(args.board, out) as (board, device):
        host_dir, board_dir = out / "resnet8-host.bevel", out / "resnet8-board.bevel"
        common = ["--bits", "8", "--calib", str(calibration)]
        host = bevel("compile", str(MODEL), "--device", "host", *common, "-o", str(host_dir))
        # The board's artifact is compiled from the very integer graph of the host's: same bits everywhere.
        there = bevel("compile", str(host_dir), "--device", device, *common, "-o", str(board_dir))
        host_eval = bevel("eval", str(host_dir), "--data", str(test), "--baseline", str(MODEL))
        peer = ["--against", "onnxruntime,onnxruntime-int8", "--model", str(MODEL), "--calib", str(calibration)]
        host_bench = bevel("bench", str(host_dir), *peer)
        host_profile = bevel("profile", str(host_dir))
        bevel("run", str(board_dir), "--device", device, "--selftest")
        limit = ["--limit", str(BOARD_IMAGES)]
        board_eval = bevel("eval", str(board_dir), "--device", device, "--data", str(test), "--baseline", str(MODEL), *limit)
        board_bench = bevel("bench", str(board_dir), "--device", device)
        board_profile = bevel("profile", str(board_dir), "--device", device)
        same = bevel("eval", str(board_dir), "--device", device, "--data", str(test), "--baseline", str(host_dir), *limit)

    show("This host", host, host_eval, host_bench)
    for name, result in host_bench["peers"].items():  # type: ignore[attr-defined]
        print(f"  {result['ratio']:.2f} times as fast as {name} in the same run")
    show(f"Board ({board_bench['device']})", there, board_eval, board_bench)
    print(f"  same choice as the host's artifact on {100 * same['agreement']:.2f} %")  # type: ignore[operator]

    text = f"top-1 {100 * host_eval['value']:.2f} % on {host_eval['n']} images"  # type: ignore[operator]
    print(f"\nreports: {report(host_dir, load_profile('host'), host_bench, host_profile, [text])}")
    text = f"top-1 {100 * board_eval['value']:.2f} % on {board_eval['n']} images"  # type: ignore[operator]
    print(f"         {report(board_dir, board, board_bench, board_profile, [text])}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
