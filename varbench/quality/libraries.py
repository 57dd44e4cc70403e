"""torch-fidelity and clean-fid, imported late, so that a machine without them can do all the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from varbench.errors import UserError
from varbench.quality.torchvision_shim import import_torchvision


class UnavailableError(UserError):
    """A quality library, or a file it needs, is not there; the message says what to do about it."""


def torch_fidelity() -> ModuleType:
    """torch-fidelity with the modules used here."""
    return _library(
        "torch_fidelity",
        "torch-fidelity",
        ("registry", "utils", "metric_isc", "metric_prc"),
    )


def clean_fid() -> ModuleType:
    return _library("cleanfid", "clean-fid", ("fid", "inception_torchscript"))


def version(distribution: str) -> str:
    """As in `torch-fidelity 0.4.0`."""
    return f"{distribution} {importlib.metadata.version(distribution)}"


def _library(name: str, distribution: str, modules: tuple[str, ...]) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise UnavailableError(
            f"{distribution} is not installed: pip install {distribution} 'torch<2.14' 'torchvision<0.29'"
        )
    import_torchvision()
    for module in modules:
        importlib.import_module(f"{name}.{module}")
    return importlib.import_module(name)
