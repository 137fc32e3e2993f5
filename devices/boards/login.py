"""Key pairs of an emulated board and of its user, and the client's side of the log-in.

In: the board's directory and port. Out: files there, and the `Ssh` address that uses them. Every board has keys of its own, so
that host key checking stays on, as for a real one.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from bevel.devices.profile import Ssh


@dataclass(frozen=True)
class Keys:
    """Public halves in OpenSSH's text form; the private ones are the files `host_key` and `user_key`."""

    host: str
    user: str


def write_keys(root: Path) -> Keys:
    """Make both key pairs in `root`."""
    public = []
    for name in ("host_key", "user_key"):
        key = asyncssh.generate_private_key("ssh-ed25519", comment="bevel emulated board")
        path = root / name
        path.touch(mode=0o600)
        path.write_bytes(key.export_private_key("openssh"))
        public.append(key.export_public_key("openssh").decode().strip())
    return Keys(*public)


def write_client(root: Path, keys: Keys, user: str, port: int, workdir: str) -> Ssh:
    """Write known_hosts and a client configuration for plain `ssh -F FILE board`; gives the address bevel uses."""
    (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {keys.host}\n")
    client = {
        "HostName": "127.0.0.1",
        "Port": port,
        "User": user,
        "IdentityFile": root / "user_key",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": root / "known_hosts",
    }
    (root / "ssh_config").write_text("Host board 127.0.0.1\n" + "".join(f"  {key} {value}\n" for key, value in client.items()))
    return Ssh(
        host="127.0.0.1",
        user=user,
        port=port,
        known_hosts=str(root / "known_hosts"),
        identity=str(root / "user_key"),
        config=str(root / "ssh_config"),
        workdir=workdir,
    )


def free_port() -> int:
    """A port of 127.0.0.1 that is free when asked for, and may be gone when someone binds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def greets(port: int, timeout_s: float) -> bool:
    """Whether an SSH server answers on the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
