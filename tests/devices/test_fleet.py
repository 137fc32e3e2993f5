"""Work on several devices at once: they overlap, fail each on its own, and an interrupt ends all of it.

The devices are an emulated board over SSH, a second one, and this machine.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bevel.devices.board import EmulatedBoard
from bevel.devices.errors import BoardError, ConnectionRefused
from bevel.devices.fleet import on_each
from bevel.devices.profile import Profile, Ssh, load_profile
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError, UsageError


@pytest.fixture(scope="module")
def second() -> Iterator[EmulatedBoard]:
    emulated = EmulatedBoard("raspberry-pi-4")
    try:
        emulated.start()
    except ToolchainError as error:
        pytest.skip(str(error))
    yield emulated
    emulated.stop()


@pytest.fixture
def boards(board: EmulatedBoard, second: EmulatedBoard) -> list[Profile]:
    return [replace(board.profile, name="one"), replace(second.profile, name="two"), load_profile("host")]


@pytest.mark.ssh
def test_devices_work_at_the_same_time(boards: list[Profile]) -> None:
    """Each program on each device waits until the programs of the others run: one after the other would never end."""
    barrier = threading.Barrier(len(boards), timeout=60)

    def meet(transport: Transport, _profile: Profile) -> str:
        gate = Path(transport.path("gate"))  # The boards are this machine, so the gate can be opened from here.

        def arrived(_: bytes) -> None:
            if not gate.exists():
                barrier.wait()
                gate.touch()

        script = "echo here; while [ ! -e gate ]; do sleep 0.05; done; rm gate; echo met"
        return transport.run(["sh", "-c", script], timeout_s=90, on_stdout=arrived).stdout.decode()

    found = on_each(boards, meet)
    assert list(found.items()) == [(name, "here\nmet\n") for name in ("one", "two", "host")]


@pytest.mark.ssh
def test_each_device_fails_alone(boards: list[Profile]) -> None:
    closed = replace(boards[0], name="off", ssh=Ssh("127.0.0.1", port=1, known_hosts="/dev/null"))

    def work(transport: Transport, _profile: Profile) -> str:
        return transport.run(["echo", "fine"]).stdout.decode()

    found = on_each([closed, boards[1]], work)
    assert isinstance(found["off"], ConnectionRefused)
    assert found["two"] == "fine\n"
    assert on_each([], work) == {}
    with pytest.raises(UsageError, match="given twice"):
        on_each([closed, closed], work)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def interrupted(boards: list[Profile], stop: Callable[[], None]) -> list[BoardError | UsageError]:
    """Run a long program on each device and `stop` once all run: what ended them, after checking that they did."""
    pids: list[int] = []
    errors: list[BoardError | UsageError] = []

    def work(transport: Transport, _profile: Profile) -> None:
        def started(chunk: bytes) -> None:
            pids.append(int(chunk))
            if len(pids) == len(boards):
                stop()

        try:
            transport.run(["sh", "-c", "echo $$; exec sleep 300"], timeout_s=300, on_stdout=started)
        except (BoardError, UsageError) as error:
            errors.append(error)
            raise

    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        on_each(boards, work)
    end = time.monotonic() + 15
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(pids) == len(boards)
    assert all(map(gone, pids))
    return errors


@pytest.mark.ssh
def test_interrupt_ends_the_work_on_all_devices(boards: list[Profile]) -> None:
    interrupted(boards, lambda: os.kill(os.getpid(), signal.SIGINT))


@pytest.mark.ssh
def test_defect_in_the_work_ends_it_on_all_devices(boards: list[Profile]) -> None:
    """An error that is not a device's must not wait for the slowest device to show."""

    def defect() -> None:
        raise ZeroDivisionError

    assert len(interrupted(boards, defect)) == len(boards) - 1
