"""Measures what each way of making visual autoregressive (VAR) image generation cheaper really buys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varbench.engine.loading import load_pipeline as load_pipeline
    from varbench.engine.pipeline import Pipeline as Pipeline
    from varbench.hookspecs import hookimpl as hookimpl

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "hookimpl", "load_pipeline"]


def __getattr__(name: str) -> Any:
    """Each is imported when it is asked for: the pipeline brings torch along, and the command line has to answer at once."""
    if name == "hookimpl":
        from varbench import hookspecs

        return hookspecs.hookimpl
    if name in ("load_pipeline", "Pipeline"):
        from varbench.engine import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'varbench' has no attribute {name!r}")
