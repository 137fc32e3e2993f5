"""Measures the heats that ship with the package: models on this machine, once for each instruction set that it can stand for.

    python -m benchmarks.tuning.ship --model FILE[@BITS] ... [--mode fast] [--device NAME ...]

Writes src/bevel/tuning/heats.json: for each class of instruction sets the machine, the date, and the times of each problem's
candidates. Classes that are not measured again stay as they are. Models already quantized need no calibration data.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bevel.compiler import Options, bind, load_graph, lowered, prepare
from bevel.devices.profile import load_profile
from bevel.tuning.options import Tuning
from bevel.tuning.tuner import Tuner
from bevel.tuning.winners import SHIPPED, Heat, isa_class, problem_digest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "src" / "bevel" / "tuning" / SHIPPED
# The profiles whose features make the classes.
DEVICES = ("host", "x86-64-avx512-vnni", "x86-64-avx2")
# Candidates slower than this choose nothing, whatever else changes.
HOPELESS = 1.5


def machine() -> str:
    """What the processor calls itself."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else "unknown"


def rows(heat: Heat) -> list[list[object]]:
    """A heat as the file has it: generator, tile, nanoseconds and spread."""
    best = min(ns for ns, _ in heat.times.values())
    kept = sorted(heat.times.items(), key=lambda entry: entry[1])
    return [[*kernel, round(ns, 1), round(spread, 5)] for kernel, (ns, spread) in kept if ns <= HOPELESS * best]


def measure(device: str, models: list[str], mode: str) -> tuple[str, dict[str, Any]]:
    """The class of `device` and its entry."""
    profile = load_profile(device)
    heats: dict[str, list[list[object]]] = {}
    for spelled in models:
        path, _, bits = spelled.partition("@")
        options = Options(device, bits or "8")
        graph = bind(prepare(load_graph(Path(path)), options), {})
        tuner = Tuner.load(profile, Tuning(mode))
        schedule = lowered(graph, profile, tuner=tuner)
        if tuner.why_static:
            raise SystemExit(f"{device}: {tuner.why_static}")
        for kernel in schedule.kernels:
            if (heat := tuner.heats.get(repr(kernel.problem))) is not None:
                heats[problem_digest(repr(kernel.problem))] = rows(heat)
        print(f"{device}: {Path(path).stem}, {len(heats)} problems so far", file=sys.stderr, flush=True)
    return isa_class(profile.target()), {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "heats": heats}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="FILE[@BITS]")
    parser.add_argument("--mode", choices=("fast", "full"), default="fast")
    parser.add_argument(
        "--device", action="append", metavar="NAME", help=f"profiles to measure as  [default: {', '.join(DEVICES)}]"
    )
    args = parser.parse_args()
    entries = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for device in args.device or DEVICES:
        name, entry = measure(device, args.model, args.mode)
        old = entries.get(name, {"heats": {}})["heats"]
        entries[name] = entry | {"heats": dict(sorted((old | entry["heats"]).items()))}
        FILE.write_text(dumps(entries))
    return 0


def dumps(entries: dict[str, Any]) -> str:
    """The file: one line a problem."""
    out = []
    for name, entry in sorted(entries.items()):
        heats = ",\n".join(f"   {json.dumps(digest)}: {json.dumps(found)}" for digest, found in entry["heats"].items())
        head = f' {json.dumps(name)}: {{\n  "machine": {json.dumps(entry["machine"])}, "date": {json.dumps(entry["date"])},'
        out.append(f'{head} "heats": {{\n{heats}\n  }}\n }}')
    return "{\n" + ",\n".join(out) + "\n}\n"


if __name__ == "__main__":
    raise SystemExit(main())
