"""A disk with a volatile write cache, and a cut of its power: a FUSE file, a loop device, ext4.

`VolatileDisk` mounts an ext4 file system at `path`. A write reaches the cache; only a flush, which the
file system sends for `fsync`, makes it durable. `cut(survive)` is a power failure: from one instant on
nothing reaches the disk, and each sector that was not flushed survives with probability `survive`.
`restore()` mounts what is left, as a machine that boots again does.

It needs root, FUSE (`libfuse3`), a free loop device and `mkfs.ext4`; `why_not()` says what is missing.
The file is also the program of the FUSE server: `python volatile_disk.py FOLDER MEGABYTES`.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from typing import Self

from waiting import until

SECTOR = 512
SECONDS = 30.0
"""How long the file system or a device may take for anything."""


def why_not() -> str | None:
    """Return what keeps this machine from having such a disk, or None."""
    if os.geteuid() != 0:
        return "power cuts need root: a file system is mounted"

    if not Path("/dev/fuse").exists():
        return "power cuts need FUSE: /dev/fuse does not exist"

    for program in ("mkfs.ext4", "losetup", "mount", "umount"):
        if shutil.which(program) is None:
            return f"power cuts need {program}: it is not installed"

    try:
        import mfusepy  # noqa: F401, PLC0415  loads libfuse, which may not be installed
    except (ImportError, OSError) as error:
        return f"power cuts need mfusepy and libfuse3: {error}"

    free = subprocess.run(["losetup", "-f"], capture_output=True, check=False)
    return None if free.returncode == 0 else "power cuts need a free loop device"


class VolatileDisk:
    """One ext4 file system whose power can be cut."""

    def __init__(self, folder: Path, megabytes: int = 192) -> None:
        self.folder = folder
        self.path = folder / "disk"
        self._image = folder / "image"
        self._fuse = folder / "fuse"
        self._megabytes = megabytes
        self._device: str | None = None
        self._server: subprocess.Popen[bytes] | None = None
        for each in (self.path, self._fuse):
            each.mkdir(parents=True)

        with self._image.open("wb") as image:
            image.truncate(megabytes << 20)

    def start(self) -> Self:
        """Make an empty file system and mount it."""
        self._serve()
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self._file)
        self._mount()
        self.sync()
        return self

    def sync(self) -> None:
        """Make everything that was written durable, as half a minute does on a real machine."""
        _run("sync", "-f", str(self.path))

    def cut(self, survive: float, seed: int) -> None:
        """Cut the power: at one instant nothing is written any more; then the mount is taken away.

        Processes that have files open there must be killed before `restore`.
        """
        assert self._server is not None
        (self._fuse / "control").write_text(f"cut {survive} {seed}\n")

    def restore(self) -> None:
        """Mount what has survived; the journal of the file system is replayed."""
        self._unmount()
        self._serve()
        self._mount()

    def close(self) -> None:
        """Unmount everything; the folder is the caller's to remove."""
        self._unmount()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def _file(self) -> str:
        return str(self._fuse / "disk")

    def _serve(self) -> None:
        command = [sys.executable, __file__, str(self.folder), str(self._megabytes)]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        until(
            lambda: os.path.ismount(self._fuse), SECONDS, otherwise="the FUSE server did not start"
        )

    def _mount(self) -> None:
        self._device = _run("losetup", "-f", "--show", self._file).strip()
        _run("mount", "-t", "ext4", "-o", "errors=remount-ro", self._device, str(self.path))

    def _unmount(self) -> None:
        if os.path.ismount(self.path):
            until(
                lambda: _succeeds("umount", str(self.path)),
                SECONDS,
                otherwise=f"{self.path} is still in use",
            )

        if self._device is not None:
            _run("losetup", "-d", self._device)
            until(
                lambda: not _is_attached(self._file),
                SECONDS,
                otherwise="the loop device is still attached",
            )
            self._device = None

        if os.path.ismount(self._fuse):
            until(
                lambda: _succeeds("umount", str(self._fuse)),
                SECONDS,
                otherwise=f"{self._fuse} is still in use",
            )

        if self._server is not None:
            self._server.wait(SECONDS)
            self._server = None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr}"
    return done.stdout


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _is_attached(file: str) -> bool:
    return bool(_run("losetup", "-j", file).strip())


# --- the FUSE server --------------------------------------------------------------------------------


class Cache:
    """The medium, and the sectors that were written since its last flush."""

    def __init__(self, image: Path) -> None:
        self._medium = os.open(image, os.O_RDWR)
        self._unflushed: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._has_power = True

    def read(self, size: int, offset: int) -> bytes:
        """Read whole sectors, the unflushed ones from the cache."""
        with self._lock:
            found = bytearray(os.pread(self._medium, size, offset).ljust(size, b"\0"))
            for number in range(offset // SECTOR, -(-(offset + size) // SECTOR)):
                sector = self._unflushed.get(number)
                if sector is not None:
                    at = number * SECTOR - offset
                    found[at : at + SECTOR] = sector

            return bytes(found[:size])

    def write(self, data: bytes, offset: int) -> None:
        """Keep sectors in the cache."""
        assert offset % SECTOR == 0
        assert len(data) % SECTOR == 0
        with self._lock:
            self._check_power()
            for at in range(0, len(data), SECTOR):
                self._unflushed[(offset + at) // SECTOR] = data[at : at + SECTOR]

    def flush(self) -> None:
        """Make everything that was written durable."""
        with self._lock:
            self._check_power()
            self._store(self._unflushed)

    def cut(self, survive: float, seed: int) -> None:
        """Lose the power; a drawn part of the unflushed sectors was on its way and is kept."""
        draw = random.Random(seed)
        with self._lock:
            if self._has_power:
                self._has_power = False
                kept = {n: s for n, s in self._unflushed.items() if draw.random() < survive}
                self._store(kept)
                self._unflushed.clear()

    def _store(self, sectors: dict[int, bytes]) -> None:
        for number, sector in sectors.items():
            os.pwrite(self._medium, sector, number * SECTOR)

        self._unflushed.clear()

    def _check_power(self) -> None:
        if not self._has_power:
            raise OSError(errno.EIO, "the power is off")


def serve(folder: Path, megabytes: int) -> None:
    """Serve two files until they are unmounted: `disk`, and `control`, which takes commands."""
    import mfusepy  # noqa: PLC0415  only this process loads libfuse

    files = _files(mfusepy, Cache(folder / "image"), megabytes << 20)
    mfusepy.FUSE(files, str(folder / "fuse"), foreground=True, nothreads=True)


def _files(fuse: Any, cache: Cache, size: int) -> Any:  # noqa: C901  one class of short methods
    # Names and order of the arguments are those of mfusepy's `Operations`.
    class Files(fuse.Operations):  # type: ignore[misc]  it is not typed
        use_ns = True

        def getattr(self, path: str, _fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}

            if path not in ("/disk", "/control"):
                raise fuse.FuseOSError(errno.ENOENT)

            length = size if path == "/disk" else 0
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": length}

        def readdir(self, _path: str, _fh: int) -> list[str]:
            return [".", "..", "disk", "control"]

        def read(self, path: str, size: int, offset: int, _fh: int) -> bytes:
            return cache.read(size, offset) if path == "/disk" else b""

        def write(self, path: str, data: bytes, offset: int, _fh: int) -> int:
            if path == "/disk":
                _do(cache.write, data, offset)
            else:
                _word, survive, seed = data.decode().split()
                _do(cache.cut, float(survive), int(seed))

            return len(data)

        def truncate(self, _path: str, _length: int, _fh: int | None = None) -> int:
            return 0

        def fsync(self, _path: str, _datasync: int, _fh: int) -> int:
            _do(cache.flush)
            return 0

    def _do(function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except OSError as error:
            raise fuse.FuseOSError(error.errno) from error

    return Files()


if __name__ == "__main__":
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    serve(Path(sys.argv[1]), int(sys.argv[2]))
