"""Dependencies point one way, and heavy libraries are imported where the architecture says."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Which areas each area may import. What must look the other way does so through bevel.ir.protocols.
ALLOWED = {
    "ir": {"ir"},
    "frontend": {"frontend", "ir"},
    "passes": {"passes", "ir"},
    "backends": {"backends", "ir"},
    "runtime": {"runtime", "backends", "ir"},
    "devices": {"devices", "runtime", "backends", "ir"},
}
# Run by the Python of other engines, where bevel's own packages are not.
PEERS = "src/bevel/benchmarking/peers/adapters"
# Third-party packages with one home.
HOMES = {
    "tvm": ["backends/tvm.py"],
    "tvm_ffi": ["backends/tvm.py"],
    "onnx": ["frontend", PEERS],
    "onnx_ir": ["frontend"],
    "asyncssh": ["devices"],
    "torch": ["src/bevel/exporting", "src/bevel/training", PEERS],
    "transformers": ["src/bevel/exporting"],
    "click": ["src/bevel/cli", "src/bevel/__main__.py", "devices/board.py"],
    "rich": ["src/bevel/cli", "src/bevel/__main__.py"],
}
IR_PACKAGES = {"numpy", "safetensors"}


def sources(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts]
    return sorted(found)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module a file imports, at any depth and under TYPE_CHECKING too, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.lineno, node.module
            if node.module == "bevel":
                for alias in node.names:
                    yield node.lineno, f"bevel.{alias.name}"


def area_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("area", ALLOWED)
def test_areas_import_in_one_direction(area: str) -> None:
    files = sources(area)
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in files
        for line, module in imports(path)
        if module.split(".")[0] == "bevel" and area_of(module) not in ALLOWED[area] | {"errors", ""}
    ]
    assert not wrong, f"{area} may import only {sorted(ALLOWED[area])} and bevel.errors:\n" + "\n".join(wrong)


def test_ir_stands_on_numpy_and_safetensors_alone() -> None:
    allowed = IR_PACKAGES | {"bevel"} | set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in sources("ir")
        for line, module in imports(path)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", HOMES)
def test_packages_stay_in_their_home(package: str) -> None:
    homes = [ROOT / home for home in HOMES[package]]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources(*ALLOWED, "src/bevel")
        for line, module in imports(path)
        if module.split(".")[0] == package and not any(path.is_relative_to(home) for home in homes)
    ]
    assert not wrong, f"{package} is imported outside {HOMES[package]}:\n" + "\n".join(wrong)


def test_the_checker_sees_what_it_should(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text("from bevel import cli\ndef f():\n    import tvm.tir\n    from bevel.passes.x import y\n")
    assert [m for _, m in imports(file)] == ["bevel", "bevel.cli", "tvm.tir", "bevel.passes.x"]
