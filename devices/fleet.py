"""Several devices at once: one piece of work on each, each over a connection of its own.

In: profiles, and a function of an open transport and its profile. Out: what it returned for each device, or the error that ended
it there. The devices are independent: one that fails or is slow leaves the others their time. Threads serve, because a transport
spends its life waiting. What a device must do for one process alone takes its lock (`Transport.lock`), as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from bevel.devices.profile import Profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.transport import Transport
from bevel.errors import BevelError, UsageError

T = TypeVar("T")


def on_each(profiles: Iterable[Profile], work: Callable[[Transport, Profile], T]) -> Mapping[str, T | BevelError]:
    """Do `work` on all devices at the same time.

    Args:
        profiles: the devices, each reached as `resolve_transport` says.
        work: gets the open transport and the profile; called in a thread of its own, so what several calls share must bear that.

    Returns:
        By device name, in the order given: what `work` returned, or why it could not (for what goes wrong on a device or on
        the way to it, one of `bevel.devices.errors`).

    Raises:
        UsageError: two profiles have the same name.
        BaseException: an interrupt, or what `work` raises that is no `BevelError`. All connections are closed first, which ends
            what runs on the devices; this returns once every `work` has come back.
    """
    devices: dict[str, Profile] = {}
    for profile in profiles:
        if profile.name in devices:
            raise UsageError(f"device {profile.name} is given twice; name each once")
        devices[profile.name] = profile
    open_ones = _Open()

    def visit(profile: Profile) -> T | BevelError:
        try:
            transport = resolve_transport(profile)
            open_ones.enter(transport)
            with transport:
                return work(transport, profile)
        except BevelError as error:
            return error

    with ThreadPoolExecutor(max(1, len(devices)), thread_name_prefix="bevel-fleet") as pool:
        jobs = {name: pool.submit(visit, profile) for name, profile in devices.items()}
        try:
            for job in wait(jobs.values(), return_when=FIRST_EXCEPTION).done:
                job.result()
        except BaseException:
            open_ones.close()
            raise
        return {name: job.result() for name, job in jobs.items()}


class _Open:
    """The transports in use, so that an interrupt can close them under their threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._transports: list[Transport] | None = []

    def enter(self, transport: Transport) -> None:
        with self._guard:
            if self._transports is None:
                raise UsageError(f"{transport.label} is not used any more: the work on all devices was called off")
            self._transports.append(transport)

    def close(self) -> None:
        with self._guard:
            transports, self._transports = self._transports or [], None
        for transport in transports:
            transport.close()
