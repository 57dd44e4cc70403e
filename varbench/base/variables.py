"""Environment variables: those that varbench reads, and those that a process which computes is started with."""

from __future__ import annotations

DISABLE = "VARBENCH_DISABLE"
"""Plugins that are left out, by comma."""

FOLDER = "VARBENCH_FOLDER"
"""Where the user stands, for a process that stands elsewhere."""

OF_PROCESSES = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296:glibc.malloc.hugetlb=1"
}
"""Unless the user sets them. Freed memory stays with the process, since asking the system for every temporary anew costs a
tenth of the time; and it is asked for in pages of 2 MiB where the system gives them on request, which on a virtual machine
saves a fifth."""
