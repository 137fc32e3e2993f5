"""Jobs cut short by a lost connection or a dead client: what was done is not lost, and nothing is left on the device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bevel.devices import errors
from bevel.devices import ssh as ssh_module
from bevel.devices.ssh import SshTransport
from tests.devices.machine import Machine, wait

pytestmark = pytest.mark.ssh
SIZE = 48 << 20


@pytest.fixture
def connect(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SshTransport]]:
    """Transports to the machine, with a device that waits 4 s for a sign of life."""
    monkeypatch.setattr(ssh_module, "HEARTBEAT_S", 0.5)
    monkeypatch.setattr(ssh_module, "PATIENCE_S", 4)
    monkeypatch.setattr(ssh_module, "BLOCK", 1 << 18)  # so that the clock of a cut is not one of few blocks
    yield SshTransport
    with SshTransport(machine.ssh) as device:
        device.cleanup()


def parts(machine: Machine) -> dict[str, int]:
    """What is there of files that did not arrive whole."""
    return {name: size for name, size in machine.files(machine.ssh.workdir).items() if ".part-" in name}


def cut_upload(machine: Machine, file: Path) -> None:
    """Send a file and lose the connection when a good part of it is there."""

    def cut() -> None:
        wait(lambda: sum(parts(machine).values()) > SIZE / 8, "the file's beginning")
        for pid in machine.servers():
            os.kill(pid, signal.SIGKILL)

    with SshTransport(machine.ssh) as device:
        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(errors.ConnectionLost, match="device is up"):
            device.upload(file, "big")
        thread.join()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(SIZE))
    return path


def isolated(machine: Machine) -> None:
    if machine.lacks:
        pytest.skip(machine.lacks)


def test_cut_upload_goes_on_where_it_stopped(machine: Machine, connect: type[SshTransport], big: Path) -> None:
    isolated(machine)
    cut_upload(machine, big)
    ((name, there),) = parts(machine).items()
    assert SIZE / 8 < there < SIZE
    with connect(machine.ssh) as device:
        assert device.upload(big, "elsewhere/big") == SIZE - there  # known by its bytes, wherever they are to go
        assert Path(device.path("elsewhere/big")).read_bytes() == big.read_bytes()
    assert parts(machine) == {}
    assert name.startswith(".part-")


def test_damaged_beginning_is_not_continued(machine: Machine, connect: type[SshTransport], big: Path) -> None:
    isolated(machine)
    cut_upload(machine, big)
    (name,) = parts(machine)
    with (machine.root / "work" / name).open("r+b") as stream:
        stream.write(bytes(64))
    with connect(machine.ssh) as device:
        assert device.upload(big, "big") == SIZE
        assert Path(device.path("big")).read_bytes() == big.read_bytes()
    assert parts(machine) == {}


def test_beginnings_nobody_asks_for_go(machine: Machine, connect: type[SshTransport]) -> None:
    with connect(machine.ssh) as device:
        work = Path(device.info.workdir)
        day = 86400
        for name, size, age in (("old", 2 << 20, 4 * day), ("new", 2 << 20, 2 * day), ("small", 5, 200), ("sent", 5, 0)):
            (work / f".part-{name}").write_bytes(bytes(size))
            os.utime(work / f".part-{name}", (time.time() - age,) * 2)
        device.open()
        assert sorted(parts(machine)) == [".part-new", ".part-sent"]


def test_interrupted_upload_leaves_nothing(machine: Machine, big: Path) -> None:
    """Ctrl-C while a file is on its way: the connection lasts, so what has arrived is removed."""
    isolated(machine)
    script = textwrap.dedent(f"""
        from pathlib import Path
        from bevel.devices import ssh
        from bevel.devices.profile import Ssh
        ssh.BLOCK = 1 << 16
        with ssh.SshTransport({machine.ssh!r}) as device:
            device.upload(Path({str(big)!r}), "big")
    """)
    client = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    wait(lambda: sum(parts(machine).values()) > 0, "the file's beginning")
    client.send_signal(signal.SIGINT)
    _, message = client.communicate(timeout=30)
    assert b"KeyboardInterrupt" in message
    assert machine.files(machine.ssh.workdir) == {}


def test_two_uploads_of_the_same_bytes_at_once(machine: Machine, connect: type[SshTransport], big: Path) -> None:
    failures: list[BaseException] = []

    def send(name: str) -> None:
        try:
            with connect(machine.ssh) as device:
                device.upload(big, name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=send, args=(name,)) for name in ("one", "two", "same", "same")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert machine.files(machine.ssh.workdir) == {"one": SIZE, "two": SIZE, "same": SIZE}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_dead_client_leaves_nothing(machine: Machine, connect: type[SshTransport], end: signal.Signals) -> None:
    """A client that holds the lock and scratch, and runs a program, is ended."""
    script = textwrap.dedent(f"""
        from bevel.devices.profile import Ssh
        from bevel.devices.ssh import SshTransport
        with SshTransport({machine.ssh!r}) as device, device.lock("a bench", 0):
            device.run(["sh", "-c", "cat >/dev/null; exec tail -f /dev/null"], stdin=bytes(1000), timeout_s=300)
    """)
    client = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait(lambda: machine.find("tail"), "the program")
    client.send_signal(end)
    assert client.wait(30) != 0
    wait(lambda: not machine.processes(), "the end of all processes of the job")
    assert machine.files(machine.ssh.workdir) == {}
    with connect(machine.ssh) as device, device.lock("the next bench", 0):
        assert device.run(["true"]).exit_status == 0


def test_what_was_said_before_the_connection_was_lost_was_heard(machine: Machine, connect: type[SshTransport]) -> None:
    isolated(machine)
    heard = bytearray()

    def hear(chunk: bytes) -> None:
        heard.extend(chunk)
        if heard.endswith(b"block 3\n"):
            for pid in machine.servers():
                os.kill(pid, signal.SIGKILL)

    with connect(machine.ssh) as device:
        with pytest.raises(errors.ConnectionLost):
            device.run(["sh", "-c", "for i in 1 2 3; do echo block $i; done; exec sleep 300"], on_stdout=hear)
        assert heard == b"block 1\nblock 2\nblock 3\n"
    wait(lambda: not machine.processes(), "the end of all processes of the job")


def test_a_lost_connection_stays_lost_until_opened_again(machine: Machine, connect: type[SshTransport], tmp_path: Path) -> None:
    isolated(machine)
    (tmp_path / "f").write_text("text")
    with connect(machine.ssh) as device:
        for pid in machine.servers():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(errors.ConnectionLost):
            device.run(["true"])
        with pytest.raises(errors.ConnectionLost):
            device.upload(tmp_path / "f", "f")
        device.open()
        assert device.run(["true"]).exit_status == 0


def test_an_error_of_the_listener_ends_the_program_there(machine: Machine, connect: type[SshTransport]) -> None:
    def refuse(_: bytes) -> None:
        raise ValueError("enough")

    with connect(machine.ssh) as device:
        with pytest.raises(ValueError, match="enough"):
            device.run(["sh", "-c", "echo go; exec sleep 300"], on_stdout=refuse)
        wait(lambda: not machine.processes(), "the end of all processes of the job")
        assert device.run(["echo", "next"]).stdout == b"next\n"


def test_scratch_lasts_as_long_as_its_connection(machine: Machine, connect: type[SshTransport], tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text")
    with connect(machine.ssh) as device, connect(machine.ssh) as other:
        device.upload(tmp_path / "f", f"{device.scratch()}/f")
        assert device.scratch() == device.scratch() != other.scratch()
        other.open()  # opening looks for abandoned ones; this one is not
        assert device.run(["cat", "f"], cwd=device.scratch()).stdout == b"text"
        folder = Path(device.path(device.scratch()))
    assert not folder.exists()
