"""What the text of a module imports."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator


def imported(text: str | bytes, package: str) -> Iterator[str]:
    """By full name, in functions too: what is loaded hangs on who was asked before. Of `from a import b` it is not known which of `a`
    and `a.b` is a module. Without a package nothing is relative."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
