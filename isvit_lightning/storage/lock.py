"""A folder that one run writes to at a time."""

import contextlib
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from isvit_lightning.errors import IsvitError

_LOG = logging.getLogger(__name__)
_NAME = "run.lock"


@contextlib.contextmanager
def locked(folder: Path, below: Sequence[str] = ()) -> Iterator[None]:
    """Make ``folder``, and keep other processes out of it while this one lives; remove it again if it stays empty.

    The lock is one of the system: it goes with the process however that ends, processes that this one forks do not hold
    it, and most network file systems share it among machines.

    Args:
        folder: where to write.
        below: names of the folders that will be written to in it.

    Raises:
        IsvitError: one of them cannot be made or written to, or another process holds the lock.
    """
    if folder.parts[:1] and re.fullmatch(r"[\w+.-]{2,}:", folder.parts[0]):
        raise IsvitError(f"{folder} is an address, expected a folder of this machine: change trainer.default_root_dir.")
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder / name for name in below if os.path.lexists(folder / name)):
            place.mkdir(exist_ok=True)
        held = _hold(folder / _NAME)
    except OSError as error:
        reason = _reason([folder, *(folder / name for name in below)], error)
        raise IsvitError(
            f"{folder} cannot be written to ({reason}), expected a folder that is writable or can be made: change "
            "trainer.default_root_dir."
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / _NAME).unlink()
        os.close(held)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _hold(path: Path) -> int:
    """Open and lock a file.

    Returns:
        Its descriptor, which holds the lock until it is closed.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Of the process, unlike flock, which would outlive it in the processes that load images.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise IsvitError(
                f"Another run writes to {path.parent}{holder and f' ({holder})'}, expected one at a time: wait for its "
                "end, or choose another trainer.default_root_dir."
            ) from None
        except OSError as error:
            _LOG.warning("%s cannot be locked (%s): start no other run there", path.parent, error.strerror)
            return descriptor
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return descriptor
        os.close(descriptor)  # of a run that ended, and removed it, between the two calls


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _reason(folders: Sequence[Path], error: OSError) -> str:
    """Why folders cannot be had: mkdir only says that something exists."""
    for place in (each for folder in folders for each in (folder, *folder.parents)):
        if os.path.lexists(place) and not os.path.isdir(place):  # noqa: PTH112 - pathlib's raises for some places
            return f"{place} is {'a link that leads to no folder' if place.is_symlink() else 'no folder'}"
    return error.strerror or type(error).__name__
