"""What one connection holds on a device, and the lock that keeps measurements apart.

A `Hold` is a command that stays on the device until it is released or its connection ends: the guard of every command
(`bevel.devices.remote`) then ends it, whatever became of this process or of the SSH server, and a reboot ends it anyway. So
what it holds cannot outlive its holder. The lock is a `flock` on one file of the device, taken by such a command: the kernel
gives it back when the command is gone, and a waiter sleeps in the kernel, which does not disturb what the holder measures. Who
holds it is an argument of the holding command, read from /proc by those who wait; no file can go stale.
"""

from __future__ import annotations

import getpass
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bevel.devices.errors import ConnectionLost, DeviceBusy, RemoteFailed
from bevel.devices.remote import BORN

HOLD_LIMIT_S = 7 * 24 * 3600  # the device-side end of a hold nobody released: a week
ANSWER_S = 60  # the device's first word: a slow board starts a shell and a few tools

# Waits for the lock, then becomes the process that holds it: its last argument says who it is.
# $1: who and what for. `flock` works on a file opened for reading, so users share one that belongs to another. The file is
# standard input because shells such as Android's mksh keep other descriptors from children; what it waits for is in the
# background because mksh heeds a signal only between its foreground children.
# Without flock (Debian's busybox) a symbolic link names the holder's process, and holds while that process lives. One that finds
# it dead moves the link away; who in that instant moved a newer one puts it back, and each taker looks again after a while.
LOCK = (
    BORN
    + r"""
who=$1
folder=${BEVEL_LOCK_DIR:-/tmp}; [ -d "$folder" ] || folder=/data/local/tmp
lock=$folder/bevel-device.lock
echo "pid $$"
if command -v flock >/dev/null; then
    [ -e "$lock" ] || (umask 0; set -C; : >"$lock") 2>/dev/null
    [ -r "$lock" ] || { echo "unusable $lock"; exit; }
    exec <"$lock"
    flock -n 0 || { echo wait; exec 3<&0; flock 0 <&3 & wait $!; exec 3<&-; }
else
    mkdir -m 777 "$lock.d" 2>/dev/null
    [ -w "$lock.d" ] || { echo "unusable $lock.d"; exit; }
    link=$lock.d/holder mine=$(born $$) waiting=
    while :; do
        if ln -s "$mine" "$link" 2>/dev/null; then
            sleep 0.3 2>/dev/null || sleep 1
            [ "$(readlink "$link")" = "$mine" ] && break
        elif held=$(readlink "$link"); then
            if [ "$(born "${held%%-*}")" = "$held" ]; then
                [ "$waiting" ] || echo wait
                waiting=yes
                sleep 1
            elif mv "$link" "$link.$$" 2>/dev/null; then
                [ "$(readlink "$link.$$")" = "$held" ] || ln -s "$(readlink "$link.$$")" "$link"
                rm -f "$link.$$"
            fi
        fi
    done
fi
read -r now idle </proc/uptime
exec sh -c 'echo held; while :; do sleep 3600 </dev/null & wait; done' "bevel-lock-holder $lock $now $who"
"""
)

# Prints the seconds since which the lock is held, and by whom; nothing when that cannot be seen.
HOLDER = r"""
folder=${BEVEL_LOCK_DIR:-/tmp}; [ -d "$folder" ] || folder=/data/local/tmp
read -r now idle </proc/uptime
cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep "^bevel-lock-holder $folder/bevel-device.lock " | sed "s/^/$now /" || :
"""
# $1: work directory. Makes a directory there that exists as long as this command, and is named after its process, so that the
# next probe knows whether to remove it.
SCRATCH = (
    BORN
    + r"""
cd -- "$1" || exit
folder=$PWD/.scratch-$(born $$)
echo "pid $$"
trap 'rm -rf -- "$folder"; exit' TERM HUP
mkdir -- "$folder" || exit
echo "made ${folder##*/}"
while :; do sleep 3600 </dev/null & wait; done
"""
)
_HOLDER = re.compile(r"^(?P<now>[\d.]+) bevel-lock-holder \S+ (?P<since>[\d.]+) (?P<who>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Holder:
    """Who holds a device's lock.

    Attributes:
        who: user, host and process, and what for, such as "pi@laptop (process 12), bench of kws".
        seconds: for how long, by the device's clock.
    """

    who: str
    seconds: float

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - self.seconds))
        return f"{self.who}, since {since} ({self.seconds:.0f} s)"


def parse_holder(text: str) -> Holder | None:
    """Read `HOLDER`'s output; None when the holder cannot be seen (another user's, on a device that hides processes)."""
    match = _HOLDER.search(text)
    return Holder(match["who"], float(match["now"]) - float(match["since"])) if match else None


class Hold:
    """A command on the device that stays until released, or until its connection ends.

    Its script prints words, one a line, beginning with "pid NUMBER".

    Args:
        start: runs the script to its end, giving its standard output in chunks; called in a thread of its own.
        end: ends the process of this number on the device.
    """

    def __init__(self, start: Callable[[Callable[[bytes], None]], object], end: Callable[[str], object]) -> None:
        self._end = end
        self._pid: str | None = None
        self._started = threading.Event()
        self._rest = b""
        self._words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, args=(start,), name="bevel-hold", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the command is still on the device, as far as is known here."""
        return self._thread.is_alive()

    def word(self, timeout_s: float) -> str | None:
        """The script's next word; None when none came in time.

        Raises:
            BoardError: the command ended with one, such as ConnectionLost.
        """
        try:
            word = self._words.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if not word and self._failure is not None:
            raise self._failure
        return word

    def release(self) -> None:
        """End the command on the device. Harmless when it has ended."""
        self._started.wait(ANSWER_S)
        if self._pid is not None and self.alive:
            self._end(self._pid)
            self._thread.join(ANSWER_S)

    def _serve(self, start: Callable[[Callable[[bytes], None]], object]) -> None:
        try:
            start(self._take)
        except BaseException as error:
            self._failure = error  # raised where the caller waits: this thread has no one to tell
        finally:
            self._words.put("")
            self._started.set()

    def _take(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            word = line.decode(errors="replace")
            if word.startswith("pid "):
                self._pid = word[4:]
                self._started.set()
            else:
                self._words.put(word)


@contextmanager
def hold_lock(
    where: str,
    start: Callable[..., Hold],
    look: Callable[[], str],
    purpose: str,
    wait_s: float,
    say: Callable[[str], None] | None,
) -> Iterator[None]:
    """The device's lock for a `with` block; see `bevel.devices.transport.Transport.lock`.

    Args:
        where: transport label for messages.
        start: starts a hold with a script and its arguments.
        look: gives `HOLDER`'s output.
        purpose: as there.
        wait_s: as there.
        say: as there.
    """

    def holder() -> str:
        return str(parse_holder(look()) or "another process")

    hold = start(LOCK, describe_caller(purpose))
    try:
        word = hold.word(ANSWER_S)
        if word == "wait":
            if say is not None:
                say(f"{where} is in use by {holder()}; waiting")
            word = hold.word(wait_s)
            if word is None:
                raise DeviceBusy(
                    where,
                    f"the device is in use by {holder()}",
                    f"Try again later (waited {wait_s:g} s); the lock ends with the process that holds it",
                )
        if word != "held":
            raise RemoteFailed(where, f"the device's lock cannot be taken ({word or 'no answer'})", "Check /tmp on the device")
        yield
        if not hold.alive:
            raise ConnectionLost(
                where,
                f"the lock for {purpose} was lost before its end, so another process may have used the device meanwhile",
                "Check power and network, then run again",
            )
    finally:
        hold.release()


def describe_caller(purpose: str) -> str:
    """What others see of this process while it holds a lock, on one line."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()} (process {os.getpid()}), {' '.join(purpose.split())}"
