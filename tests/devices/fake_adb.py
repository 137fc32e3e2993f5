"""An `adb` program for tests: its devices are directories and shells of this machine, their faults are written in a file.

$FAKE_ADB names a directory with `state.json`: {"devices": {serial: state}, "features": [...], "push": message of a refusal,
"server": message of a server that does not start, "reachable": [host:port that `connect` adds]}. A device that stops being in
state "device" while a command runs takes the link with it, as a pulled cable does; what runs on it is then on its own. A file
`boot_id` there stands for the kernel's. $FAKE_ADB_SHELL is the devices' shell, and $FAKE_ADB_PATH the programs they have.
Messages and exit codes are those of adb 29 and 34.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

HOME = Path(os.environ["FAKE_ADB"])
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def state() -> dict[str, Any]:
    loaded = json.loads((HOME / "state.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def fail(message: str, code: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)


def pick(serial: str | None) -> str:
    """The device meant, or adb's refusal."""
    devices = state()["devices"]
    if serial is None:
        if not devices:
            fail("adb: no devices/emulators found")
        if len(devices) > 1:
            fail("adb: more than one device/emulator")
        serial = next(iter(devices))
    if serial not in devices:
        fail(f"adb: device '{serial}' not found")
    if devices[serial] != "device":
        fail(f"adb: device {devices[serial]}")
    return serial


def pump(source: BinaryIO, sink: BinaryIO) -> None:
    try:
        while chunk := os.read(source.fileno(), 1 << 16):
            sink.write(chunk)
            sink.flush()
        sink.close()
    except OSError:
        return


def shell(serial: str, command: str) -> int:
    """One command in the device's shell, which outlives this program unless its input ends."""
    if (HOME / "boot_id").exists():
        command = command.replace(BOOT_ID, str(HOME / "boot_id"))
    environment = {"PATH": os.environ["FAKE_ADB_PATH"], "TMPDIR": str(HOME)}
    process = subprocess.Popen(
        [os.environ["FAKE_ADB_SHELL"], "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "BEVEL_LOCK_DIR": str(HOME)},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    threading.Thread(target=pump, args=(sys.stdin.buffer, process.stdin), daemon=True).start()
    outputs = [
        threading.Thread(target=pump, args=pair, daemon=True)
        for pair in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
    ]
    for thread in outputs:
        thread.start()
    while any(thread.is_alive() for thread in outputs):
        if state()["devices"].get(serial) != "device":
            os._exit(1)
        time.sleep(0.02)
    return process.wait()


def copy(source: str, target: str, verb: str) -> int:
    refusal = state().get("push") if verb == "push" else None
    if refusal:
        fail(f"adb: error: failed to copy '{source}' to '{target}': {refusal}")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        fail(f"adb: error: failed to copy '{source}' to '{target}': remote couldn't create file: {error.strerror}")
    print(f"{source}: 1 file {verb}ed, 0 skipped.")
    return 0


def main(arguments: list[str]) -> int:
    with (HOME / "log").open("a") as log:
        log.write(shlex.join(arguments)[:200] + "\n")
    serial = None
    if arguments[0] == "-s":
        serial, arguments = arguments[1], arguments[2:]
    verb, *rest = arguments
    if verb == "start-server":
        if message := state().get("server"):
            fail(message)
    elif verb == "devices":
        print("List of devices attached")
        print("".join(f"{name}\t{how}\n" for name, how in state()["devices"].items()))
    elif verb == "connect":
        now = state()
        if rest[0] in now.get("reachable", ()):
            now["devices"][rest[0]] = "device"
            (HOME / "state.json").write_text(json.dumps(now))
            print(f"connected to {rest[0]}")
        else:
            print(f"failed to connect to '{rest[0]}': Connection refused")
    elif verb == "get-state":
        print("device" if pick(serial) else "")
    elif verb == "features":
        pick(serial)
        print("\n".join(state().get("features", ["shell_v2", "cmd", "stat_v2"])))
    elif verb == "shell":
        assert rest[0] == "-T"
        return shell(pick(serial), " ".join(rest[1:]))
    elif verb in ("push", "pull"):
        pick(serial)
        return copy(rest[0], rest[1], verb)
    else:
        fail(f"adb: unknown command {verb}")
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
