"""Options of the micro-benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("varbench")
    group.addoption("--preset", default="tiny", help="model preset; its weights are random or shipped, the sizes true")
    group.addoption("--device", default="cpu")
    group.addoption("--dtype", default="bfloat16")
    group.addoption("--batch", default="8")
