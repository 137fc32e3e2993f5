"""Artifact directories: contents, atomic writing, validation on opening, and packing into one file."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from bevel.errors import ArtifactError, ToolchainError, UsageError
from bevel.runtime import artifact as artifact_module
from bevel.runtime.archive import pack, unpack
from bevel.runtime.artifact import Artifact


def edit_manifest(artifact: Artifact, **fields: Any) -> None:
    path = artifact.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_contents(built: Artifact, tiny: Any) -> None:
    """The files of ARCHITECTURE section 7, each with its hash, and what tools read from the manifest."""
    manifest = built.manifest
    files = {p.relative_to(built.path).as_posix() for p in built.path.rglob("*") if p.is_file()}
    assert files == manifest["files"].keys() | {"manifest.json"}
    core = {"lib/libmodel.so", "lib/libmodel.a", "bin/bevel-run", "include/model.h", "example.c", "weights.bin", "graph.ir.zst"}
    assert core < files
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((built.path / name).read_bytes()).hexdigest()
    assert manifest["integer_only"] is True
    assert manifest["float_islands"] == []
    assert manifest["provenance"] == {"made by": "test"}
    assert manifest["layers"][1] == {
        "name": "gemm",
        "op": "IntGemm+Requantize",
        "kernel": "generic:test",
        "symbol": "bevel_k_gemm",
        "bits": "w8a8",
        "macs": 8192,
        "bytes": 1664,
    }
    assert manifest["bytes"]["total"] == built.library.stat().st_size + built.weights.stat().st_size
    assert built.graph_bytes() == b"graph"
    (inputs, outputs), _ = built.golden()
    np.testing.assert_array_equal(tiny.reference(inputs["x"])["rows"], outputs["rows"])


def test_relative_path(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path relative to the working directory, as users type it."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tiny, Path("m.bevel"))
    Artifact.open(tmp_path / "m.bevel")
    assert [p.name for p in tmp_path.iterdir()] == ["m.bevel"]


def test_reproducible(built: Artifact, tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """The same schedule and objects give the same bytes."""
    again = write_tiny(tiny, tmp_path / "again.bevel", graph_bytes=b"graph")
    assert again.manifest == built.manifest


def test_replaces_an_artifact_only(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """An older artifact is replaced; a foreign directory or file stays as it is."""
    path = tmp_path / "m.bevel"
    write_tiny(tiny, path)
    write_tiny(replace(tiny, schedule=replace(tiny.schedule, name="second")), path)
    assert Artifact.open(path).name == "second"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("text")
    for name in ("precious", "file"):
        with pytest.raises(ArtifactError, match="not a"):
            write_tiny(tiny, tmp_path / name)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.bevel", "precious"]


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (ToolchainError, ToolchainError), (OSError, UsageError)]
)
def test_nothing_left_behind(
    tiny: Any,
    write_tiny: Callable[..., Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    raised: type[BaseException],
) -> None:
    """Ctrl-C or a failure at any point leaves neither a partial artifact nor a temporary directory; the old artifact stays."""
    write_tiny(tiny, tmp_path / "m.bevel")

    def fail(*_: object) -> None:
        raise error

    for function in ("link", "_put", "_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(artifact_module, function, fail)
            for name in ("m.bevel", "new.bevel"):
                with pytest.raises(raised):
                    write_tiny(tiny, tmp_path / name)
        assert [p.name for p in tmp_path.iterdir()] == ["m.bevel"]
    Artifact.open(tmp_path / "m.bevel")


def test_unwritable_place(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """A path below a file cannot be written, and says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_tiny(tiny, tmp_path / "file" / "m.bevel")


def test_failed_swap_keeps_the_old(
    tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the new directory cannot take its place at the last moment, the old artifact is back where it was."""
    write_tiny(tiny, tmp_path / "m.bevel")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UsageError, match="disk on fire"):
        write_tiny(replace(tiny, schedule=replace(tiny.schedule, name="second")), tmp_path / "m.bevel")
    assert [p.name for p in tmp_path.iterdir()] == ["m.bevel"]
    assert Artifact.open(tmp_path / "m.bevel").name == tiny.schedule.name


def test_golden_must_fit(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """Golden data of other names, shapes or dtypes is refused, as is none at all."""
    (inputs, outputs), _ = tiny.golden()
    for bad, message in (
        ([], "at least one golden case"),
        ([({}, outputs)], "inputs are"),
        ([(inputs, {"rows": outputs["rows"]})], "outputs are"),
        ([({"x": inputs["x"][0]}, outputs)], "expected uint8"),
        ([(inputs, {**outputs, "max": outputs["max"].astype(np.int8)})], "'max' is int8"),
    ):
        with pytest.raises(UsageError, match=message):
            write_tiny(tiny, tmp_path / "m.bevel", golden=bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lib/libmodel.so", "weights.bin", "bin/bevel-run", "selftest/0.in.0.npy"])
def test_damage_is_found(copied: Artifact, name: str) -> None:
    """A flipped bit, a truncated and a missing file are told apart, with the file's name."""
    file = copied.path / name
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(ArtifactError, match=f"{file.name}.*damaged"):
        Artifact.open(copied.path)
    Artifact.open(copied.path, verify=False)
    file.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=f"{file.name}.*bytes"):
        Artifact.open(copied.path, verify=False)
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{file.name}.*missing"):
        Artifact.open(copied.path, verify=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "zip"}, "not the manifest"),
        ({"format_version": 99}, "format version 99"),
        ({"files": []}, "'files'"),
        ({"files": {}}, "lists no"),
        ({"files": {"a": {"bytes": "1", "sha256": ""}}}, "files.a.bytes"),
        ({"target": {}}, "target.name"),
        ({"inputs": [3]}, r"inputs\[0\]"),
        (
            {"outputs": [{"name": "y", "shape": [1, "2"], "dtype": "int8", "scale": 1, "zero_point": 0}]},
            r"outputs\[0\].shape\[1\]",
        ),
        (
            {"outputs": [{"name": "y", "shape": [-1], "dims": [""], "dtype": "int8", "scale": 1, "zero_point": 0}]},
            "the type of tensor 'y'",
        ),
        (
            {"outputs": [{"name": "y", "shape": [1], "dims": [""], "dtype": "object", "scale": 1, "zero_point": 0}]},
            "the type of tensor 'y'",
        ),
        ({"arena_bytes": True}, "arena_bytes"),
        ({"integer_only": 1}, "integer_only"),
        ({"name": None}, "'name'"),
        ({"golden_cases": "2"}, "golden_cases"),
    ],
)
def test_bad_manifest(copied: Artifact, fields: dict[str, Any], message: str) -> None:
    """A manifest of another kind, version or with wrong types is refused before anything else is read."""
    edit_manifest(copied, **fields)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(copied.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", "[" * 100_000])
def test_mutilated_manifest(copied: Artifact, text: str) -> None:
    (copied.path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError):
        Artifact.open(copied.path)


def test_paths_stay_inside(copied: Artifact, tmp_path: Path) -> None:
    """A manifest cannot point outside its directory, by name or by link."""
    (tmp_path / "outside").write_bytes(b"")
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    for name in ("../outside", "/etc/hostname", "", "a/../../outside"):
        edit_manifest(copied, files={**copied.manifest["files"], name: entry})
        with pytest.raises(ArtifactError, match="unsafe"):
            Artifact.open(copied.path)
    (copied.path / "link").symlink_to(tmp_path / "outside")
    edit_manifest(copied, files={**copied.manifest["files"], "link": entry})
    with pytest.raises(ArtifactError, match="link"):
        Artifact.open(copied.path)


def test_golden_that_vanished(copied: Artifact) -> None:
    """Golden files that went away after opening are an artifact's error."""
    (copied.path / "selftest" / "1.in.0.npy").unlink()
    with pytest.raises(ArtifactError, match="self-test case 1"):
        copied.golden()


def test_update(copied: Artifact) -> None:
    """A report and measured fields can be added later; the core cannot be changed that way."""
    copied.update({"report.html": b"<p>"}, quality={"top1": 0.9})
    again = Artifact.open(copied.path)
    assert again.manifest["quality"] == {"top1": 0.9}
    assert (again.path / "report.html").read_bytes() == b"<p>"
    for files, fields in (({"weights.bin": b""}, {}), ({"manifest.json": b""}, {}), ({}, {"layers": []})):
        with pytest.raises(UsageError, match="belong"):
            again.update(files, **fields)
    with pytest.raises(ArtifactError, match="unsafe"):
        again.update({"../evil": b""})


def test_pack_and_unpack(built: Artifact, tmp_path: Path) -> None:
    """A packed artifact unpacks to the same files, executable where they were, and packs to the same bytes again."""
    packed = pack(built, tmp_path / "m.tar.zst")
    again = unpack(packed, tmp_path / "into")
    assert again.path == tmp_path / "into" / built.path.name
    assert again.manifest == built.manifest
    assert again.runner.stat().st_mode & 0o111
    assert pack(again, tmp_path / "n.tar.zst").read_bytes() == packed.read_bytes()
    with pytest.raises(ArtifactError, match="exists already"):
        unpack(packed, tmp_path / "into")
    assert [p.name for p in (tmp_path / "into").iterdir()] == [built.path.name]


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_archives(built: Artifact, tmp_path: Path) -> None:
    """Paths that escape, links, devices, two top directories, noise and truncation: refused, and nothing left behind."""
    good = pack(built, tmp_path / "good.tar.zst").read_bytes()
    plain = tarfile.TarInfo
    hostile = {
        "escape": _tar((plain("m/../../evil"), b"x")),
        "absolute": _tar((plain("/tmp/evil"), b"x")),
        "top": _tar((plain("evil"), b"x")),
        "symlink": _tar((_link("m/a", "/etc", tarfile.SYMTYPE), b"")),
        "hardlink": _tar((_link("m/a", "/etc/passwd", tarfile.LNKTYPE), b"")),
        "fifo": _tar((_link("m/a", "", tarfile.FIFOTYPE), b"")),
        "two": _tar((plain("m/a"), b"x"), (plain("n/a"), b"x")),
        "twice": _tar((plain("m/a"), b"x"), (plain("m/a"), b"y")),
        "file as folder": _tar((plain("m/a"), b"x"), (plain("m/a/b"), b"y")),
        "no artifact": _tar((plain("m/a"), b"x")),
        "empty": _tar(),
        "noise": b"noise" * 100,
        "truncated": good[: len(good) // 2],
        "nothing": b"",
    }
    for name, data in hostile.items():
        (tmp_path / "bad.tar.zst").write_bytes(data)
        with pytest.raises(ArtifactError):
            unpack(tmp_path / "bad.tar.zst", tmp_path / "into")
        assert list((tmp_path / "into").iterdir()) == [], name
    with pytest.raises(ArtifactError, match="No such file"):
        unpack(tmp_path / "none.tar.zst", tmp_path / "into")
