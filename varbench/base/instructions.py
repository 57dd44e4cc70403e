"""What this machine's processor has instructions for."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: a CPU without instructions for it only imitates it."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
