"""`bevel devices emulate`: a board without hardware, usable as a device for as long as the command runs."""

from __future__ import annotations

import signal
from dataclasses import replace

import click

from bevel.cli import options
from bevel.cli.output import emit
from bevel.devices.boards.catalog import EMULATIONS, emulated_board
from bevel.devices.profile import save_profile, user_directory
from bevel.errors import UsageError


@click.command("emulate")
@click.argument("board", default="fast")
@click.option("--of", "of", metavar="NAME|FILE", help="Device to stand in for, instead of BOARD's own.")
@click.option("--as", "name", metavar="NAME", help="Name of the device while it runs.  [default: BOARD]")
@options.universal
def command(board: str, of: str | None, name: str | None, as_json: bool, verbose: bool) -> None:
    """Run an emulated board until Ctrl-C: reached by real SSH, every error of a real one, but its speed means nothing.

    \b
    BOARD is one of
    fast        programs under qemu-user with this machine's kernel (default)
    armv7       the same for a 32-bit board
    system-a53, system-a72, system-a76
                a whole Debian machine under qemu with these cores

    \b
    bevel devices emulate &
    bevel run model.bevel --device fast --selftest
    bevel devices emulate system-a72 --as test-pi &
    bevel devices emulate fast --of raspberry-pi-5 --as test-pi5 &
    """
    name = name or board
    emulated = emulated_board(board, of)
    if (user_directory() / f"{name}.toml").exists():
        raise UsageError(
            f"a device {name} exists already: it is running, or was killed. Pick another name with --as NAME, or forget it with "
            f"`bevel devices remove {name}`"
        )
    # SIGTERM as Ctrl-C, so that the board is taken down either way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with emulated:
        profile = emulated.profile
        assert profile.ssh is not None
        saved = save_profile(replace(profile, name=name, description=f"emulated: {EMULATIONS[board].description}"))
        try:
            document = {
                "device": name,
                "board": board,
                "arch": profile.arch,
                "cpu": profile.qemu_cpu,
                "address": profile.ssh.address,
                "ssh_config": str(emulated.ssh_config),
            }
            text = [
                f"emulated {profile.arch} board ({profile.qemu_cpu}) is up; Ctrl-C ends it",
                f"  log in: ssh -F {emulated.ssh_config} board",
                f"  use it: bevel run model.bevel --device {name}",
            ]
            emit(as_json, document, text)
            while True:
                signal.pause()
        except KeyboardInterrupt:
            return
        finally:
            saved.unlink(missing_ok=True)
