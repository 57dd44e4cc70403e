"""What is asked of a process that holds some rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from varbench.run.children import Child


@dataclass(frozen=True, kw_only=True)
class Task:
    title: str
    lacking: Callable[[str], bool]
    """Whether a row is to be asked."""
    work: Callable[[tuple[Child, ...], tuple[str, ...]], None]
    """With the process that holds the rows, and others like it if it can be helped."""
    full_beside: bool
    """Whether the full model is loaded too, if no row is it."""
    helped: bool = False
    """Whether several processes shall do it where they can."""
