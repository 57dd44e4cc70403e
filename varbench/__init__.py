"""Measures what each way of making visual autoregressive (VAR) image generation cheaper really buys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench.hookspecs import hookimpl

if TYPE_CHECKING:
    from varbench.engine.loading import load_pipeline as load_pipeline
    from varbench.engine.pipeline import Pipeline as Pipeline

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "hookimpl", "load_pipeline"]


def __getattr__(name: str) -> Any:
    """The pipeline brings torch along, so it is imported when it is asked for."""
    if name in ("load_pipeline", "Pipeline"):
        from varbench.engine import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'varbench' has no attribute {name!r}")
