"""Files that are there whole or not at all, and a check of free space before anything long begins."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from varbench.errors import DiskFullError, UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only once it is complete and on the disk; what had the name stays until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"the disk is full: {path} could not be written, and what was there before is unchanged. "
                f"Free space on {path.parent} (now {_mib(shutil.disk_usage(path.parent).free)}) and run the same "
                "command again; it goes on where it was."
            ) from error
        raise
    if os.name == "posix":  # the rename itself must reach the disk; other systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def require_space(folder: Path, *, needed: int, purpose: str) -> None:
    """Refuse early what would fill the disk hours later."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{purpose} needs {_mib(needed)} on the disk of {folder}, and {_mib(free)} are free. Free some, or set "
            "XDG_CACHE_HOME to a folder on another disk."
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def lay_there(path: Path, *, before: int) -> bool:
    """Whether a file lay in its place, as it is, before this moment in nanoseconds.

    A plugin's process may write where this one does. What a run takes over must be older than its first child, and the
    time of a file's last change is the system's: unlike that of its contents, nobody can set it back.
    """
    return path.stat().st_ctime_ns < before
