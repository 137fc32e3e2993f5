"""Latency over minutes on a device that is played, and the stream of lines every bench arrives in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from bevel.benchmarking.watch import BLOCK_MS, Point, Watch, Watched, draw, save
from bevel.devices.errors import ConnectionLost, RemoteFailed
from bevel.devices.local import LocalTransport
from bevel.devices.profile import load_profile
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.devices.transport import RunResult
from bevel.runtime.artifact import Artifact

SVG = "{http://www.w3.org/2000/svg}"


class Board:
    """A device that throttles: after ten seconds it is hot, its clock halves and calls take twice as long."""

    def __init__(self, block_s: float = BLOCK_MS / 1000, lost_after: int | None = None) -> None:
        self.now, self.block_s, self.lost_after = 0.0, block_s, lost_after
        self.transport = self
        self.artifact = SimpleNamespace(name="net")
        self.asked: list[int] = []

    @contextlib.contextmanager
    def lock(self, purpose: str, wait_s: float, say: object) -> Iterator[None]:
        yield

    def install(self) -> None:
        pass

    def bench(self, options: BenchOptions, on_line: Callable[[dict[str, Any]], None]) -> float:
        self.asked.append(options.blocks)
        assert options.limit_s > options.blocks * self.block_s, "the device would end it"
        on_line({"bench": 1})
        for index in range(options.blocks):
            if self.lost_after == index:
                raise ConnectionLost("the board", "the cable is out", "")
            self.now += self.block_s
            hot = self.now > 10
            line = {"block": index, "wall_ns": 2e6 if hot else 1e6, "khz": 900_000 if hot else 1_800_000}
            on_line(line | {"mc": 85_000 if hot else 60_000, "canary_ns": 100 if hot else 50})
        on_line({"end": 1, "throttled": 3})
        return 1.0


def watch(board: Board) -> tuple[Watch, list[Point]]:
    seen: list[Point] = []
    return Watch(cast(DeviceRunner, board), BenchOptions(), seen.append), seen


def test_throttling_is_seen() -> None:
    board = Board()
    watching, seen = watch(board)
    found = watching.run(1, lambda: board.now)
    assert found.points == seen
    assert found.points[-1].s == pytest.approx(60, abs=1)
    assert found.slowdown == pytest.approx(2.0)
    document = found.document()
    assert (document["throttled"], document["temperature_c"]) == (3, [60.0, 85.0])
    assert (seen[0].canary, seen[-1].canary, seen[-1].mhz) == (1.0, 2.0, 900.0)


def test_slow_models_are_watched_for_the_time_asked_for() -> None:
    """A call of eight seconds: two blocks show how long they take, and the rest of the minute is asked for in such blocks."""
    board = Board(block_s=8.0)
    watching, seen = watch(board)
    watching.run(1, lambda: board.now)
    assert board.asked == [2, 6]
    assert len(seen) == 8


def test_what_came_before_an_interruption_is_there() -> None:
    watching, seen = watch(Board(lost_after=5))
    with pytest.raises(ConnectionLost):
        watching.run(1, lambda: 0.0)
    assert watching.seen is not None
    assert len(watching.seen.points) == len(seen) == 2 + 5


def lines(drawing: str) -> list[str]:
    return [line.attrib["points"] for line in ElementTree.fromstring(drawing).iter(f"{SVG}polyline")]


def test_the_drawing_shows_what_the_device_told(tmp_path: Path) -> None:
    full = [Point(float(s), 1.0 + s / 10, 1800.0, 60.0 + s, 1.0) for s in range(10)]
    bare = [Point(float(s), 1.0, None, None, 1.0) for s in range(10)]
    assert len(lines(draw(Watched(full, None), "net <on> a board & more"))) == 3
    drawing = draw(Watched(bare, None), "net")
    assert len(lines(drawing)) == 2, "without a clock the canary stands for it"
    assert "canary" in drawing
    partly = [*bare[:3], *full[3:]]
    assert [len(points.split()) for points in lines(draw(Watched(partly, None), "net"))] == [10, 7, 7]
    assert len(lines(draw(Watched(full[:1], None), "one point"))) == 3
    data = save(Watched(full, 2), "net", tmp_path / "net.watch.svg")
    assert data == tmp_path / "net.watch.json"
    assert json.loads(data.read_text())["throttled"] == 2
    assert "http" not in (tmp_path / "net.watch.svg").read_text().replace("http://www.w3.org/2000/svg", ""), "self-contained"


# The stream ------------------------------------------------------------------------------------------------------------


def stream(monkeypatch: pytest.MonkeyPatch, chunks: list[bytes]) -> list[dict[str, Any]]:
    """What a runner hands on of what arrives in `chunks`."""

    def run(self: LocalTransport, argv: list[str], *, cwd: str, timeout_s: float, on_stdout: Any) -> RunResult:
        for chunk in chunks:
            on_stdout(chunk)
        return RunResult(b"".join(chunks), b"", 0, 1.5)

    monkeypatch.setattr(LocalTransport, "run", run)
    seen: list[dict[str, Any]] = []
    artifact = Artifact(Path("net.bevel"), {"name": "net", "graph_hash": "0" * 64})
    runner = DeviceRunner(artifact, LocalTransport(load_profile("host")))
    assert runner.bench(BenchOptions(), seen.append) == 1.5
    return seen


def test_lines_are_handed_on_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"bench": 1}\n{"block": 0}\n{"end": 1}\n'
    for size in (1, 5, 100):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        assert stream(monkeypatch, chunks) == [{"bench": 1}, {"block": 0}, {"end": 1}]


@pytest.mark.parametrize("text", [b'{"bench": 1}\n', b"", b"bevel\n", b"[1]\n", b'{"end": 1}\n{"block": 0}\n', b"\xff\n"])
def test_a_stream_that_is_no_bench_is_named(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    with pytest.raises(RemoteFailed, match="bevel-run --bench printed"):
        stream(monkeypatch, [text])


def test_options_as_the_runner_takes_them() -> None:
    given = BenchOptions(3, 5, 0, True, (2, 3), {"seq": 8})
    text = "--blocks 3 --block-ms 5 --warmup-ms 0 --cold --pin 2,3 --dim seq=8"
    assert given.arguments() == text.split()
