"""What operating systems do differently: locks, places in files, flushing, the size on disk.

Each has a way that works everywhere, and no other file calls what one of the systems lacks.
"""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(path: Path) -> int:
    """Hold a file or folder against other processes, until the descriptor that comes back is closed
    or this process ends, killed or not. Where the file system has no locks, nothing is held.

    Raises:
        BlockingIOError: another process holds it, or just had it and took it away.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        return _lock_beside(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        pass  # a file system without locks
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        os.close(descriptor)
        raise BlockingIOError(f"{path} is another one now")
    return descriptor


def _lock_beside(path: Path) -> int:
    """Windows opens no folder, and moves none in which a file is open. So what is held is a file
    beside it, which the system takes away when its descriptor is closed.
    """
    vanishing: int | None = getattr(os, "O_TEMPORARY", None)
    if vanishing is None:
        return os.open(os.devnull, os.O_RDONLY)
    try:
        return os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_EXCL | vanishing)
    except (FileExistsError, PermissionError):  # the latter while it vanishes
        raise BlockingIOError(f"{path} is held") from None


def write_at(descriptor: int, content: memoryview, offset: int) -> int:
    """Write bytes at a place of a file; returns how many. It may move the descriptor's position:
    two threads need one each.
    """
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, content)


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Read bytes from a place of a file; returns how many, 0 at its end. It may move the
    descriptor's position: two threads need one each.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [into], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    content = os.read(descriptor, len(into))
    into[: len(content)] = content
    return len(content)


def flush(path: Path, times: bool = True) -> None:
    """A file is on the disk when this returns.

    Args:
        times: its times, too; its content and length always are.
    """
    # Windows flushes what it may write; elsewhere a file may be flushed that nobody may write.
    with path.open("r+b" if os.name == "nt" else "rb") as file:
        if times or not hasattr(os, "fdatasync"):
            os.fsync(file.fileno())
        else:
            os.fdatasync(file.fileno())


def bytes_on_disk(path: Path) -> int:
    """What a file takes there; of one with holes less than its length, where that is known."""
    found = path.stat()
    blocks: int | None = getattr(found, "st_blocks", None)
    return found.st_size if blocks is None else 512 * blocks
