"""Kernels of ours in C: compiled for this machine's processor where there is a compiler, once, and kept.

Where that cannot be, everything is computed by torch's operators, and `Compiled.how` says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from varbench.base.places import cache_folder
from varbench.base.whole_files import write_whole
from varbench.errors import UserError

SOURCE = Path(__file__).parents[1] / "model/kernels.c"
COMPILERS = ("cc", "gcc", "clang")
_FLAGS = (
    "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC",
    # No product is fused with a sum: what is added to the stream has the bits that policies see.
    "-ffp-contract=off",
    # So that sums are of many numbers at a time. What is not a number stays so, which "-ffast-math" would not see to.
    "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno",
)  # fmt: skip
_LONGEST = 60
"""Seconds; it takes one."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    library: ctypes.CDLL | None
    how: str
    """By which compiler, or why not."""
    key: str
    """Of what computes: of the library, or what is told of there being none."""

    @property
    def lacking(self) -> str | None:
        """What is told a user of a machine that could have the library, and has not."""
        if self.library is not None or not _could_be():
            return None
        return (
            f"{self.how}: the engine computes by torch's operators alone, and `tiny` takes about 1.4 times as long. With a C compiler "
            "and its headers (apt-get install gcc libc6-dev) and a cache folder that can be written, it compiles its own"
        )


@functools.cache
def compiled() -> Compiled:
    """The library. Threads are those of torch, which must be loaded: its library for them is linked to by name."""
    compiler, why_not = _compiler()
    if compiler is None:
        return Compiled(library=None, how=why_not, key=why_not)
    try:
        key = _key(Path(compiler).resolve())
        library = _loaded(compiler, cache_folder("kernels") / f"{SOURCE.stem}-{key}.so")
        return Compiled(library=library, how=f"compiled by {compiler}", key=key)
    except (OSError, RuntimeError, UserError, subprocess.SubprocessError) as error:
        why_not = f"{compiler} failed: {_said(error)}"
        return Compiled(library=None, how=why_not, key=f"none by {compiler}")


def _could_be() -> bool:
    """Whether this is a machine that it is for."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _compiler() -> tuple[str | None, str]:
    """Its path, or why there is none."""
    if not _could_be():
        return None, f"not for {sys.platform} on {platform.machine()}"
    return next(filter(None, map(shutil.which, COMPILERS)), None), f"no C compiler ({', '.join(COMPILERS)}) was found"


def _key(compiler: Path) -> str:
    """A hash of all that decides what is compiled: a cache may be shared by machines."""
    there = compiler.stat()
    told = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    processor = [line for line in told if line.startswith(("model name", "flags"))]
    parts = (SOURCE.read_bytes(), compiler, there.st_mtime_ns, there.st_size, _FLAGS, processor)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _loaded(compiler: str, kept: Path) -> ctypes.CDLL:
    if kept.is_file():
        with contextlib.suppress(OSError):  # what a crash left in its place is made again
            return ctypes.CDLL(str(kept))
    _compile(compiler, kept)
    return ctypes.CDLL(str(kept))


def _compile(compiler: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        # Linked without OpenMP: torch has brought one, and a second would have threads of its own.
        unlinked, linked = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        for command in (
            [compiler, *_FLAGS, "-c", str(SOURCE), "-o", str(unlinked)],
            [compiler, "-shared", str(unlinked), "-o", str(linked), "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=_LONGEST, text=True, errors="replace")
        write_whole(target, linked.read_bytes())


def _said(error: Exception) -> str:
    said = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return said[0] if said else type(error).__name__
