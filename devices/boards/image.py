"""The kernel and root file system an emulated board boots: Debian packages of its architecture in one initramfs.

In: an architecture. Out: `Image`, two files in bevel's cache, made once (about 40 MB of downloads, 20 s) and reused by every
board. The archive is written here rather than by cpio, so that files belong to root and devices exist though nobody is root.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bevel.backends.objects import cache_dir
from bevel.devices.boards.packages import File, download, exclusive, read_package
from bevel.errors import ToolchainError

# Where a board says that it is none: its transports are marked emulated (devices/remote.py).
MARK = "etc/bevel-emulated"
USER = "pi"

_PACKAGES = (
    *("linux-image-cloud-arm64", "busybox-static", "openssh-server", "coreutils", "dash", "bash", "grep", "sed", "mawk"),
    *("findutils", "util-linux", "mount", "procps", "hostname", "libc-bin", "iproute2"),
)
# Dependencies of installation scripts and of services that do not run here.
_LEFT_OUT = (
    *("adduser_", "passwd_", "debconf_", "dpkg_", "ucf_", "perl", "libperl", "libdb5", "libgdbm", "libsemanage", "libsepol"),
    *("initramfs-tools", "klibc", "libklibc", "cpio_", "kmod_", "libkmod", "logsave_", "udev_", "tar_", "gcc-", "libpam-"),
    *("init-system-helpers_", "runit-helper_", "sysvinit", "lsb-base_", "debianutils_", "e2fsprogs", "libext2fs", "dmsetup"),
    *(
        "libdevmapper",
        "libapparmor",
        "linux-base_",
        "sensible-utils_",
        "usrmerge_",
        "libfile-find-rule-perl",
        "libnumber-compare-perl",
    ),
    *("libtext-glob-perl", "openssh-client_"),
)
# Neither of use nor small; the merged file system of Debian 12 and later has everything else below usr.
_USELESS = re.compile(
    r"usr/(share|include|games|lib/(modules|systemd|linux-image[^/]*|debug|[^/]+/gconv))/|boot/|etc/ssh/moduli|usr/sbin/(tc|devlink)$"
)
_MERGED = ("bin", "sbin", "lib")
_MODULES = ("virtio_mmio", "virtio_net", "virtio_blk")

_INITTAB = "::sysinit:/etc/start\n::respawn:/etc/serve\n::restart:/init\n"
# The network is qemu's; /home is a disk of its own, so that files survive a reset as they do on an SD card.
_START = """#!/usr/bin/busybox sh
export PATH=/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
chmod 755 /
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
for module in $(cat /etc/module-order); do busybox insmod "/usr/lib/modules/$module"; done
hostname bevel-emulated
busybox ip link set lo up
busybox ip addr add 10.0.2.15/24 dev eth0
busybox ip link set eth0 up
busybox ip route add default via 10.0.2.2
mount -t ext4 /dev/vda /home
mkdir -p /run/sshd /home/pi
chown pi:pi /home/pi
"""
# Newer servers lock out an address after failed log-ins, which tests make on purpose; older ones do not know the option.
_SERVE = """#!/usr/bin/busybox sh
export PATH=/usr/bin:/usr/sbin
/usr/sbin/sshd -t -o PerSourcePenalties=no 2>/dev/null && exec /usr/sbin/sshd -D -e -o PerSourcePenalties=no
exec /usr/sbin/sshd -D -e
"""
_SSHD = f"""HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
AllowUsers {USER} root
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PidFile none
SetEnv PATH=/usr/bin:/usr/sbin
Subsystem sftp internal-sftp
"""
_PASSWD = f"""root:x:0:0:root:/root:/bin/bash
{USER}:x:1000:1000:{USER}:/home/{USER}:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""


@dataclass(frozen=True)
class Image:
    """What a board boots.

    Attributes:
        kernel: Linux kernel in the form qemu's -kernel takes.
        initramfs: cpio archive of the root file system.
        packages: names and versions of the packages in it.
    """

    kernel: Path
    initramfs: Path
    packages: tuple[str, ...]


def debian_image() -> Image:
    """The arm64 image, built on first use.

    Raises:
        ToolchainError: apt is missing or cannot fetch the packages; the message says what to do.
    """
    sources = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("image.py", "packages.py"))
    root = cache_dir() / "boards"
    folder = root / f"arm64-{hashlib.sha256(sources).hexdigest()[:16]}"
    image = Image(folder / "kernel", folder / "initramfs", ())
    with exclusive(root / "lock"):
        if not folder.exists():
            _build(root, folder)
    return Image(image.kernel, image.initramfs, tuple((folder / "packages").read_text().split()))


def _build(root: Path, folder: Path) -> None:
    packages = download("arm64", _PACKAGES, _LEFT_OUT, root / "apt-arm64")
    files: dict[str, File] = {}
    for path in packages:
        for name, file in read_package(path):
            files[_merged(name)] = file
    kernels = [name for name in files if name.startswith("boot/vmlinuz-")]
    if len(kernels) != 1:
        raise ToolchainError(f"expected one kernel among the packages of the emulated board, found {len(kernels)}: {kernels}")
    root_files = {name: file for name, file in files.items() if not _USELESS.match(name)} | _modules(files) | _configuration()
    temporary = Path(tempfile.mkdtemp(prefix=".image-", dir=root))
    try:
        (temporary / "kernel").write_bytes(files[kernels[0]].data)
        (temporary / "initramfs").write_bytes(cpio(root_files))
        (temporary / "packages").write_text("".join(f"{path.stem}\n" for path in packages))
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _merged(name: str) -> str:
    """Path after Debian's merge of /bin, /sbin and /lib into /usr."""
    return f"usr/{name}" if name.split("/")[0] in _MERGED else name


def _configuration() -> dict[str, File]:
    """Directories, accounts and start scripts."""
    links = {**{name: f"usr/{name}" for name in _MERGED}, "init": "usr/bin/busybox", "usr/bin/sh": "dash", "usr/bin/awk": "mawk"}
    texts = {
        "etc/inittab": _INITTAB,
        "etc/ssh/sshd_config": _SSHD,
        "etc/passwd": _PASSWD,
        "etc/shadow": f"root:*:::::::\n{USER}:*:::::::\n",  # no password, yet not locked: keys work
        "etc/group": f"root:x:0:\n{USER}:x:1000:\nnogroup:x:65534:\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        "etc/hosts": "127.0.0.1 localhost bevel-emulated\n",
    }
    files = {name: File(stat.S_IFLNK | 0o777, target.encode()) for name, target in links.items()}
    files |= {name: File(stat.S_IFREG | 0o644, text.encode()) for name, text in texts.items()}
    files |= {f"etc/{name}": File(stat.S_IFREG | 0o755, text.encode()) for name, text in (("start", _START), ("serve", _SERVE))}
    for name in ("dev", "proc", "sys", "run", "tmp", "home", "root"):
        files[name] = File(stat.S_IFDIR | (0o700 if name == "root" else 0o755), b"")
    return files


def _modules(files: Mapping[str, File]) -> dict[str, File]:
    """The kernel modules a board needs, unpacked, and the order to insert them in; dependencies are named in the modules."""
    available = {Path(name).name.partition(".")[0].replace("-", "_"): name for name in files if ".ko" in Path(name).name}
    order: list[str] = []
    chosen: dict[str, File] = {}

    def visit(module: str) -> None:
        if module in order or module not in available:
            return  # Built into the kernel when no package has it.
        file = files[available[module]]
        data = lzma.decompress(file.data) if available[module].endswith(".xz") else file.data
        for dependency in _module_dependencies(data):
            visit(dependency)
        order.append(module)
        chosen[f"usr/lib/modules/{module}.ko"] = File(file.mode, data)

    for module in _MODULES:
        visit(module)
    text = "".join(f"{module}.ko\n" for module in order)
    return chosen | {"etc/module-order": File(stat.S_IFREG | 0o644, text.encode())}


def _module_dependencies(module: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def cpio(files: Mapping[str, File], owner: int = 0) -> bytes:
    """A "newc" archive, as Linux reads at boot; several may follow each other in one file, later entries winning.

    Args:
        files: by path without leading slash; directories above them are added.
        owner: user and group id of everything.
    """
    parents = {str(parent): File(stat.S_IFDIR | 0o755, b"") for name in files for parent in Path(name).parents if parent.name}
    # The kernel opens /dev/console for init before anything is mounted.
    console = {"dev/console": File(stat.S_IFCHR | 0o600, b"")}
    entries = sorted((parents | console | {"dev": File(stat.S_IFDIR | 0o755, b"")} | dict(files)).items())
    blocks: list[bytes] = []
    for number, (name, file) in enumerate(entries, start=1):
        device = (5, 1) if stat.S_ISCHR(file.mode) else (0, 0)
        blocks += _entry(name, number, file, owner, device)
    blocks += _entry("TRAILER!!!", 0, File(0, b""), 0, (0, 0))
    archive = b"".join(blocks)
    return archive + bytes(-len(archive) % 512)


def _entry(name: str, number: int, file: File, owner: int, device: Sequence[int]) -> list[bytes]:
    path = name.encode() + b"\0"
    fields = (number, file.mode, owner, owner, 1, 0, len(file.data), 0, 0, *device, len(path), 0)
    header = b"070701" + "".join(f"{value:08x}" for value in fields).encode() + path
    return [header, bytes(-len(header) % 4), file.data, bytes(-len(file.data) % 4)]
