"""What a child process that trains on a CPU is better off with."""

from __future__ import annotations


def training_environment(*, threads: int) -> dict[str, str]:
    """Environment to add. Fresh memory is dear: with these thresholds glibc keeps what it has freed, instead of giving
    it back and faulting it in again at every step (a training step of `tiny` takes a tenth less time)."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={2**30}:glibc.malloc.trim_threshold={2**32}",
    }
