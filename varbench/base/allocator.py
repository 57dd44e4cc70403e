"""How a process that computes asks the system for memory: what a process of ours is started with, unless the user says more."""

from __future__ import annotations

VARIABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296:glibc.malloc.hugetlb=1"
}
"""Freed memory stays with the process, since asking the system for every temporary anew costs a tenth of the time; and it is
asked for in pages of 2 MiB where the system gives them on request, which on a virtual machine saves a fifth."""
