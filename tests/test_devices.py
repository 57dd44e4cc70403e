"""Which GPU is meant where there are several, with a torch that only seems to have them; `test_gpu.py` has real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import models
import pytest
import torch

from varbench.base import devices
from varbench.engine.pipeline import Pipeline
from varbench.errors import UserError


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of two GPUs, those that were made the current one."""
    entered: list[str] = []

    @contextmanager
    def device(given: torch.device) -> Iterator[None]:
        entered.append(str(given))
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", entered.append)
    monkeypatch.setattr(torch.cuda, "device", device)
    return entered


def test_a_gpu_that_is_asked_for_by_number_is_meant_where_none_is_named(current: list[str]) -> None:
    for device in ("cpu", "cuda", "cuda:1"):
        devices.use_device(device)
    assert current == ["cuda:1"]
    with pytest.raises(UserError, match="sees 2 GPUs"):
        devices.use_device("cuda:2")


@dataclass
class Lies:
    device: torch.device

    @devices.by_its_device
    def seen(self, current: list[str], *, more: str) -> str:
        """What it is for."""
        return f"{current[-1]} {more}" if current else more


def test_what_lies_on_a_gpu_runs_there_whatever_the_current_one_is(current: list[str]) -> None:
    assert Lies(torch.device("cuda:1")).seen(current, more="and more") == "cuda:1 and more"
    assert current == ["cuda:1", "left"]
    assert Lies(torch.device("cpu")).seen([], more="and more") == "and more" and len(current) == 2
    assert Lies.seen.__doc__ == "What it is for."


@pytest.mark.parametrize("call", ["generate", "encode", "decode", "logits", "alone"])
def test_all_that_a_pipeline_does_is_done_on_its_device(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = models.pipeline()
    out = pipe.generate(models.LABELS, seed=1)
    entered: list[torch.device] = []

    def on_its_device(device: torch.device) -> torch.device:
        entered.append(device)
        return torch.device("cpu")  # which is a context too

    monkeypatch.setattr(devices, "on_its_device", on_its_device)
    monkeypatch.setattr("varbench.engine.pipeline.on_its_device", on_its_device)
    {
        "generate": lambda: pipe.generate(models.LABELS),
        "encode": lambda: pipe.encode(2 * out.images - 1),
        "decode": lambda: pipe.decode(out.tokens),
        "logits": lambda: pipe.logits(out.tokens, models.LABELS),
        "alone": lambda: _alone(pipe),
    }[call]()
    assert entered == [pipe.device]


def _alone(pipe: Pipeline) -> None:
    with pipe.alone("full_var"):
        pass
