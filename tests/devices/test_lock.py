"""The lock on the device: one bevel process at a time, and none after its holder, whatever became of that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bevel.devices import errors
from bevel.devices.local import LocalTransport
from bevel.devices.lock import Holder, parse_holder
from bevel.devices.profile import load_profile
from bevel.devices.transport import Transport

Open = Callable[[], Transport]


@pytest.fixture(params=["flock", "no flock"])
def another(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens transports to this machine that share a lock of the test's own; also as on a device without flock."""
    monkeypatch.setenv("BEVEL_LOCK_DIR", str(tmp_path))
    if request.param == "no flock":
        tools = tmp_path / "tools"
        tools.mkdir()
        for folder in ("/usr/bin", "/bin"):
            for tool in Path(folder).iterdir():
                if tool.name != "flock" and not (tools / tool.name).is_symlink():
                    (tools / tool.name).symlink_to(tool)
        monkeypatch.setenv("PATH", str(tools))
    opened: list[Transport] = []

    def start() -> Transport:
        opened.append(LocalTransport(load_profile("x86-64")))
        opened[-1].open()
        return opened[-1]

    yield start
    for transport in opened:
        transport.close()


def hold_elsewhere(tmp_path: Path) -> subprocess.Popen[str]:
    """A process of its own that has taken the lock."""
    script = textwrap.dedent("""
        import signal
        from bevel.devices.local import LocalTransport
        from bevel.devices.profile import load_profile
        with LocalTransport(load_profile("x86-64")) as here, here.lock("a long bench", 0):
            print("taken", flush=True)
            signal.pause()
    """)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    return holder


def test_one_holder_at_a_time(another: Open) -> None:
    first, second = another(), another()
    said: list[str] = []
    with first.lock("bench of kws", 0):
        with pytest.raises(errors.DeviceBusy) as busy, second.lock("bench of vww", 0.3, said.append):
            pass
        # A second transport of this process is refused like one of another host.
        for text in (str(busy.value), said[0]):
            assert f"(process {os.getpid()}), bench of kws, since " in text
        assert first.run(["true"]).exit_status == 0  # the holder works on
    with second.lock("bench of vww", 5):
        pass


def test_waiting_ends_with_the_holder(another: Open) -> None:
    first, second = another(), another()
    waiting, taken = threading.Event(), threading.Event()

    def wait() -> None:
        with second.lock("second", 30, lambda _: waiting.set()):
            taken.set()

    with first.lock("first", 0):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(20)
        assert not taken.wait(0.3)
    thread.join(20)
    assert taken.is_set()


def test_a_lock_within_a_lock_does_nothing_and_threads_take_turns(another: Open) -> None:
    device = another()
    refused: list[BaseException] = []

    def intrude() -> None:
        try:
            with device.lock("intruder", 0.1):
                pass
        except errors.DeviceBusy as error:
            refused.append(error)

    with device.lock("outer", 0):
        with device.lock("inner", 0):
            pass
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join(20)
    assert "another thread of this process" in str(refused[0])
    with another().lock("the next", 5):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_lock_ends_with_a_killed_holder(another: Open, tmp_path: Path, end: signal.Signals) -> None:
    holder = hold_elsewhere(tmp_path)
    device = another()
    with pytest.raises(errors.DeviceBusy, match=rf"\(process {holder.pid}\), a long bench, since"), device.lock("mine", 0):
        pass
    holder.send_signal(end)
    with device.lock("mine", 10):
        holder.wait(20)


def processes(tmp_path: Path, argument: str = "") -> list[int]:
    """Processes that commands of this test's transports started, with an argument that begins like this."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"BEVEL_LOCK_DIR={tmp_path}".encode() in (folder / "environ").read_bytes().split(b"\0")
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # It ended meanwhile, or belongs to someone else.
        if ours and any(text.startswith(argument.encode()) for text in arguments):
            found.append(int(folder.name))
    return found


def test_a_lock_lost_on_the_way_is_told(another: Open, tmp_path: Path) -> None:
    """The command that holds it is killed on the device, as the out-of-memory killer would."""

    def measure_under_a_dying_lock() -> None:
        with another().lock("a bench", 0):
            # A child that is about to become its `sleep` looks like the holder for an instant.
            os.kill(min(processes(tmp_path, f"bevel-lock-holder {tmp_path}/")), signal.SIGKILL)
            with another().lock("another bench", 10):
                pass
            end = time.monotonic() + 10
            while any(thread.name == "bevel-hold" for thread in threading.enumerate()) and time.monotonic() < end:
                time.sleep(0.02)

    with pytest.raises(errors.ConnectionLost, match="lock for a bench was lost before its end"):
        measure_under_a_dying_lock()


def test_interrupted_wait_leaves_no_waiter(another: Open, tmp_path: Path) -> None:
    first = another()
    with first.lock("first", 0):
        second = another()

        def interrupt(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), second.lock("second", 30, interrupt):
            pass
    end = time.monotonic() + 10
    while processes(tmp_path) and time.monotonic() < end:
        time.sleep(0.02)
    assert processes(tmp_path) == []


def test_error_inside_the_lock_frees_it(another: Open) -> None:
    device = another()
    with pytest.raises(ValueError, match="mine"), device.lock("a", 0):
        raise ValueError("mine")
    with another().lock("b", 5):
        pass


def test_many_take_turns(another: Open, tmp_path: Path) -> None:
    """Nobody holds the lock while another does, also when all find that its last holder is dead."""
    if (tmp_path / "tools").exists():
        (tmp_path / "bevel-device.lock.d").mkdir()
        (tmp_path / "bevel-device.lock.d/holder").symlink_to("1-1-of-another-boot")
    inside: list[str] = []
    most = 0

    def work(device: Transport, name: str) -> None:
        nonlocal most
        with device.lock(name, 60):
            inside.append(name)
            most = max(most, len(inside))
            time.sleep(0.05)
            inside.remove(name)

    threads = [threading.Thread(target=work, args=(another(), f"job {index}")) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert (most, inside) == (1, [])


def test_lock_file_of_another_user_serves(another: Open, tmp_path: Path) -> None:
    """A file one may only read is enough."""
    (tmp_path / "bevel-device.lock").touch(mode=0o444)
    with another().lock("a", 0):
        pass


def test_holder_text() -> None:
    holder = parse_holder("100.50 bevel-lock-holder /tmp/bevel-device.lock 40.25 pi@laptop (process 7), bench of kws\n")
    assert holder == Holder("pi@laptop (process 7), bench of kws", 60.25)
    assert parse_holder("") is None
    assert parse_holder("100.50 something else\n") is None
