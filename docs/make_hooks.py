"""Writes `hooks.md` from the hook specifications: `python docs/make_hooks.py`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

from varbench import hookspecs

HEAD = """\
# The hooks

Made from `varbench.hookspecs` by `python docs/make_hooks.py`. A package gives any of these, as functions of a module that it
names under the entry-point group `varbench`; each example is a whole plugin. A hook that is left out, or returns None, is
the full model's behaviour. The policies' methods are documented in `varbench.policies`.
"""


THEMES = ("basics", "teaching", "within_layers", "over_scales", "whole_models", "reported")
"""Modules of `varbench.hookspecs`, in the order of the page."""


def reference() -> str:
    """The page."""
    hooks = sorted((thing for name, thing in vars(hookspecs).items() if name.startswith("varbench_")), key=_place)
    return "\n".join([HEAD, *(line for hook in hooks for line in _section(hook))])


def _place(hook: FunctionType) -> tuple[int, int]:
    return THEMES.index(hook.__module__.rpartition(".")[2]), hook.__code__.co_firstlineno


def _section(hook: FunctionType) -> Iterator[str]:
    text, *examples = re.split(r"^Example(.*):\n", inspect.cleandoc(hook.__doc__ or ""), flags=re.MULTILINE)
    sentence, _, parameters = text.partition("Parameters:\n")
    yield f"## {hook.__name__}"
    yield f"`{hook.__name__}{inspect.signature(hook)}`".replace("'", "")
    yield ""
    yield sentence.strip()
    yield ""
    for line in textwrap.dedent(parameters).strip().splitlines():
        name, colon, meaning = line.partition(": ")
        yield f"- `{name}`: {meaning}" if colon and not line.startswith(" ") else f"  {line.strip()}"
    if parameters.strip():
        yield ""
    for of_what, example in zip(examples[::2], examples[1::2], strict=True):
        if of_what:
            yield f"An example{of_what}:\n"
        yield f"```python\n{textwrap.dedent(example).strip()}\n```\n"


if __name__ == "__main__":
    Path(__file__).with_name("hooks.md").write_text(reference(), encoding="utf-8")
