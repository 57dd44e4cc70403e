"""The one place that knows how to import torchvision, on which torch-fidelity and clean-fid depend.

The torchvision of the package index is a CUDA build. Beside a CPU build of torch its compiled library cannot be loaded,
and `import torchvision` then fails while it describes operators that the library would have declared. Neither quality
library uses any of them, so declaring their names first is enough. A pair that matches is left alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from varbench.errors import UserError


@functools.cache
def import_torchvision() -> ModuleType:
    """torchvision, whether or not its compiled library fits this torch; what needs that library then says so itself."""
    if "torchvision" not in sys.modules and not compiled_library_loads(_folder()):
        declare_operators(_folder())
    return importlib.import_module("torchvision")


def compiled_library_loads(folder: Path) -> bool:
    """Loads `_C` as torchvision itself would do next; a second load of the same file does nothing."""
    import torch

    found = importlib.machinery.FileFinder(
        str(folder), (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    ).find_spec("_C")
    if found is None or found.origin is None:
        return False
    try:
        torch.ops.load_library(found.origin)
    except OSError:
        return False
    return True


def declare_operators(folder: Path) -> tuple[str, ...]:
    """Declares, without any kernel, every operator that `_meta_registrations.py` names; returns the names."""
    import torch

    text = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    names = tuple(
        dict.fromkeys(re.findall(r'@(?:register_meta|torch\.library\.register_fake)\("(?:torchvision::)?(\w+)"', text))
    )
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in names:
        library.define(f"{name}(...) -> ...")
    _LIBRARIES.append(library)
    return names


_LIBRARIES: list[object] = []  # A declaration lasts as long as its library object.


def _folder() -> Path:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "torchvision is not installed, and torch-fidelity and clean-fid need it: pip install 'torch<2.14' 'torchvision<0.29'"
        )
    return Path(spec.submodule_search_locations[0])
