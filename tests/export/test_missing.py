"""Without the optional dependencies, the error names the extra that has them."""

from __future__ import annotations

import sys

import pytest

from tests.cli.conftest import Bevel
from tests.cli.conftest import bevel as bevel_fixture

command = bevel_fixture


@pytest.mark.parametrize("package", ["torch", "onnxruntime"])
def test_missing_packages(command: Bevel, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "torch":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and is looked for first")
    done = command("export", "nets:conv", "--input", "x=1", "-o", "net.onnx", "--json")
    assert done.code == 4
    assert done.json["error"]["kind"] == "ToolchainError"
    assert package in done.json["error"]["message"]
    assert "bevel[export]" in done.json["error"]["message"]


def test_help_needs_no_extra(command: Bevel, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "transformers", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    done = command("export", "--help")
    assert done.code == 0
    assert "bevel export mynet:build" in done.out
