"""The wheel holds every subpackage and data file: a checkout that lost its symbolic links would not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("frontend", "ir", "passes", "backends", "runtime", "devices")


def test_links_point_to_the_root_folders() -> None:
    for name in LINKED:
        link = ROOT / "src" / "bevel" / name
        assert link.is_symlink(), f"{link} is not a symbolic link"
        assert link.resolve() == ROOT / name


def test_wheel_contains_every_subpackage(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("bevel-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for name in (*LINKED, "cli"):
        sources = [p for p in (ROOT / "src" / "bevel" / name).rglob("*.py") if "__pycache__" not in p.parts]
        assert sources, name
        for path in sources:
            assert str(path.relative_to(ROOT / "src")) in inside
    for pattern in ("runtime/c/*.c", "runtime/c/*.h", "devices/profiles/*.toml"):
        for path in ROOT.glob(pattern):
            assert f"bevel/{path.relative_to(ROOT)}" in inside
    assert "bevel/py.typed" in inside
