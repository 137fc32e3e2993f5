"""The main job from end to end, as `make demo` runs it: a real CNN on this host and on an aarch64 board.

    python examples/demo.py [--board PROFILE] [--out DIR]

Compiles MLPerf Tiny's ResNet-8 (CIFAR-10) to integer-only code for this machine and for a Raspberry Pi 4, runs both, the board
over SSH (an emulated one unless --board names a profile with an address), and shows accuracy, latency, profile and sizes. Every
step is a `bevel` command that is printed before it runs; the HTML reports stay in the output directory. Exits with 1 when what
the demo claims does not hold: integer-only code, the same integer graph and the same answers on both, accuracy close to fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bevel.data import save_arrays
from bevel.devices.board import EmulatedBoard
from bevel.devices.profile import Profile, load_profile, save_profile
from bevel.errors import BevelError
from bevel.runtime.artifact import Artifact

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "resnet8_cifar10_float.onnx"
CALIBRATION_IMAGES = 128
# Emulation is slow and deterministic: a few images prove that the board computes what the host does.
BOARD_IMAGES = 32
# Points of top-1 that eight bits may cost on these few hundred images (two standard errors of the difference of such samples).
MOST_LOST = 0.03


def bevel(*args: object) -> Any:
    """Run a verb with --json, echoing the command; its document. Ends the demo with the verb's exit code when it fails."""
    words = [str(arg) for arg in args]
    print(f"$ bevel {shlex.join(_short(word) for word in words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "bevel", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def _short(word: str) -> str:
    """Paths as one would type them from here."""
    path = Path(word)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else word


@contextlib.contextmanager
def the_board(name: str | None, folder: Path) -> Iterator[tuple[Profile, str]]:
    """The board's profile and what --device takes for it; without a name, an emulated Raspberry Pi 4 behind a real SSH server."""
    if name is not None:
        yield load_profile(name), name
        return
    with EmulatedBoard("raspberry-pi-4") as board:
        yield board.profile, str(save_profile(board.profile, folder / f"{board.profile.name}.toml"))


def prepare_data(folder: Path) -> tuple[Path, Path]:
    """Calibration and test data from the images that ship with bevel; no image is in both."""
    whole = folder / "cifar10.npz"
    script = ROOT / "examples" / "prepare_cifar10.py"
    subprocess.run([sys.executable, str(script), "--for", "resnet8", "-o", str(whole)], check=True)
    with np.load(whole) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    calibration = {n: a[:CALIBRATION_IMAGES] for n, a in data.items() if n != "label"}
    test = {n: a[CALIBRATION_IMAGES:] for n, a in data.items()}
    return save_arrays(folder / "calibration.npz", calibration), save_arrays(folder / "test.npz", test)


def show(title: str, compiled: Any, evaluated: Any, bench: Any, profile: Any) -> None:
    """One paragraph of results."""
    size, latency = compiled["bytes"], bench["latency_ms"]
    accuracy = [
        f"top-1 {100 * evaluated['value']:.2f} % on {evaluated['n']} images, fp32 {100 * evaluated['baseline']['value']:.2f} %",
        f"same choice as fp32 on {100 * evaluated['agreement']:.2f} %",
    ]
    emulated = bench["provenance"] == "emulated"
    print(f"\n{title}")
    print(f"  size      library {size['library']:,}, weights {size['weights']:,}, arena {compiled['arena_bytes']:,} bytes")
    print(f"  accuracy  {'; '.join(accuracy)}")
    note = "emulated: says nothing about a board's speed" if emulated else "measured, 1 thread"
    print(f"  latency   {latency['median']:.3f} ms ({note}{', unstable' if bench['unstable'] and not emulated else ''})")
    for name, peer in bench["peers"].items():
        print(f"            {peer['ratio']:.2f} times as fast as {name} in the same run")
    slowest = max(profile["layers"], key=lambda layer: layer["share"])
    print(
        f"  profile   slowest of {len(profile['layers'])} steps: {slowest['op']} with {100 * slowest['share']:.0f} % of the time"
    )


def demo(board_name: str | None, out: Path) -> int:
    """Run every step; the exit code."""
    start = time.monotonic()
    calibration, test = prepare_data(out)
    host_dir, board_dir = out / "resnet8-host.bevel", out / "resnet8-board.bevel"
    peers = ["--against", "onnxruntime,onnxruntime-int8", "--model", MODEL, "--calib", calibration]
    few = ["--limit", BOARD_IMAGES]

    with the_board(board_name, out) as (board, device):
        print(f"\nWill int8 pay on {board.name}?")
        costs = bevel("cost", MODEL, "--device", device)["total_ms"]
        print(f"  predicted (static): fp32 {costs['fp32']:.3f} ms, int8 {costs['w8a8']:.3f} ms")
        print("\nCompile for this host, then the very same integer graph for the board")
        host = bevel("compile", MODEL, "--device", "host", "--bits", "8", "--calib", calibration, "-o", host_dir)
        there = bevel("compile", host_dir, "--device", device, "--calib", calibration, "-o", board_dir)
        print("\nRun and measure on this host")
        host_eval = bevel("eval", host_dir, "--data", test, "--baseline", MODEL, "--report")
        host_bench = bevel("bench", host_dir, *peers, "--report")
        host_profile = bevel("profile", host_dir, "--report")
        print("\nRun and measure on the board, over SSH")
        bevel("run", board_dir, "--device", device, "--selftest")
        board_eval = bevel("eval", board_dir, "--device", device, "--data", test, "--baseline", MODEL, *few, "--report")
        same = bevel("eval", board_dir, "--device", device, "--data", test, "--baseline", host_dir, *few)
        board_bench = bevel("bench", board_dir, "--device", device, "--report")
        board_profile = bevel("profile", board_dir, "--device", device, "--report")

        show("This host", host, host_eval, host_bench, host_profile)
        kind = "emulated behind a real SSH server" if board_name is None else "over SSH"
        title = f"Board {board.name} ({kind}, {board_bench['device']})"
        show(title, there, board_eval, board_bench, board_profile)

    hashes = {str(Artifact.open(folder).manifest["graph_hash"]) for folder in (host_dir, board_dir)}
    claims = {
        "integer-only code on both": host["integer_only"] and there["integer_only"],
        "both compiled from one integer graph": len(hashes) == 1,
        "the board's self-test found the host's bytes": True,  # the run above would have ended the demo
        f"same answers on {same['n']} images": same["agreement"] == 1.0,
        "accuracy within noise of fp32": host_eval["value"] >= host_eval["baseline"]["value"] - MOST_LOST,
    }
    print("\nChecked")
    for claim, holds in claims.items():
        print(f"  {'yes' if holds else 'NO '}  {claim}")
    print("\nReports (open in a browser)")
    for folder in (host_dir, board_dir):
        print(f"  {folder / 'report.html'}")
    print(f"\n{'done' if all(claims.values()) else 'FAILED'} in {time.monotonic() - start:.0f} s")
    return 0 if all(claims.values()) else 1


def main() -> int:
    """Read the options and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", help="device profile with an SSH address (default: an emulated Raspberry Pi 4)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out", help="where artifacts and reports go")
    args = parser.parse_args()
    out: Path = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return demo(args.board, out)
    except BevelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
