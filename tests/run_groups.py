"""Runs the checks group by group and prints the minutes each took; `make test` calls it.

python tests/run_groups.py            every group
python tests/run_groups.py lint unit  some groups
python tests/run_groups.py --full     long sweeps and full boards as well
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# `-n 2`: the reference machine has two cores; SSH tests share ports and mounts and run alone.
PARALLEL = ["-n", "2", "--dist", "loadfile"]
LINT = [
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["mypy", "-p", "bevel"],
]
GROUPS: dict[str, list[str]] = {
    "house": ["tests/house"],
    "unit": ["tests/ir", "tests/passes", "tests/preprocess", "tests/frontend", "tests/runtime", "tests/benchmarking", *PARALLEL],
    "kernels": ["tests/backends", *PARALLEL],
    "conformance": ["tests/conformance"],
    "devices": ["tests/devices"],
    "e2e": ["tests/e2e", "tests/cli", "tests/export", "tests/training", "tests/tuning", "tests/allocation", *PARALLEL],
}
SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|error)")


def run_group(name: str, full: bool, counts: dict[str, int]) -> bool:
    """Run one group, streaming its output; True when it passed."""
    if name == "lint":
        return all(subprocess.run([str(BIN / tool), *args], cwd=ROOT, check=False).returncode == 0 for tool, *args in LINT)
    paths = [p for p in GROUPS[name] if not p.startswith("tests/") or (ROOT / p).exists()]
    command = [sys.executable, "-m", "pytest", "-q", *paths, *([] if full else ["-m", "not slow"])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            last = line if SUMMARY.search(line) else last
    for number, what in SUMMARY.findall(last):
        counts[what] = counts.get(what, 0) + int(number)
    return process.returncode == 0


def main() -> int:
    """Run the groups and print a table of minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=["lint", *GROUPS, []], help="groups to run (default: all)")
    parser.add_argument("--full", action="store_true", help="include tests marked slow")
    args = parser.parse_args()
    # On shared cores two BLAS threads wait for each other in every small product: one is several times faster.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    rows: list[tuple[str, float, bool]] = []
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for name in args.groups or ["lint", *GROUPS]:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        passed = run_group(name, args.full, counts)
        rows.append((name, (time.monotonic() - start) / 60, passed))
    print("\ngroup      minutes  result")
    for name, minutes, passed in rows:
        print(f"{name:10} {minutes:7.1f}  {'ok' if passed else 'FAILED'}")
    print(f"{'total':10} {sum(m for _, m, _ in rows):7.1f}")
    failed = sum(not passed for _, _, passed in rows)
    print(
        f"{counts['passed']} passed, {max(counts['failed'] + counts.get('error', 0), failed)} failed, {counts['skipped']} skipped"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
