"""Captured training steps, with graphs that run what was captured: which steps are captured, and that each gets its own batch and
rate. That real ones do the same only a GPU shows (`test_gpu.py`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from varbench.policies import TrainStep
from varbench.train import step_graphs
from varbench.train.optimiser import adamw, set_rate, update
from varbench.train.ranks import Ranks
from varbench.train.step_graphs import Given, Replayable, StepGraphs, worth_capturing

KINDS = (TrainStep(), TrainStep(point="d2"))


class Graph:
    """A capture runs nothing: what would run is kept for the replays."""

    def __init__(self) -> None:
        self.run: Callable[[], None] = lambda: None

    def replay(self) -> None:
        self.run()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[TrainStep]:
    """The kinds of steps that were captured, in order."""
    kinds: list[TrainStep] = []
    inside = StepGraphs._capture

    def capture(self: StepGraphs, kind: TrainStep, inputs: tuple[Tensor, ...]) -> object:
        kinds.append(kind)
        run, figures = self._run, torch.zeros(2)
        with monkeypatch.context() as patch:
            patch.setattr(self, "_run", lambda *_: figures)
            made = inside(self, kind, inputs)
        made.graph.run = lambda: figures.copy_(run(kind, inputs))
        return made

    monkeypatch.setattr(StepGraphs, "_capture", capture)
    for name, fake in {
        "CUDAGraph": Graph,
        "Stream": lambda device: SimpleNamespace(),
        "graph": lambda *_, **__: contextlib.nullcontext(),
        "graph_pool_handle": lambda: object(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return kinds


def steps(
    take: Callable[[int, float], tuple[str, float, float]], count: int = 10
) -> Iterator[tuple[str, float, float]]:
    for step in range(count):
        yield take(step, 0.01 / (1 + step))


def given(step: int, share: object = None) -> Given:
    return Given(kind=KINDS[step % 2], trained=str(step % 2), inputs=(torch.full((3, 4), 1.0 + step),))


def loss(module: nn.Linear) -> Callable[[TrainStep, Tensor], Tensor]:
    return lambda kind, x: (module(x) * (2 if kind.point else 1) - 5).square().mean()


def test_each_kind_is_captured_once_and_steps_are_those_of_plain_training(captured: list[TrainStep]) -> None:
    torch.manual_seed(0)
    module, plain = nn.Linear(4, 4), nn.Linear(4, 4)
    plain.load_state_dict(module.state_dict())
    graphs = StepGraphs(
        Replayable(given=given, loss=loss(module), follows=lambda kind: True), module, adamw(module, weight_decay=0.1)
    )
    optimizer = adamw(plain, weight_decay=0.1)

    def plainly(step: int, rate: float) -> tuple[str, float, float]:
        set_rate(optimizer, rate)
        one = given(step)
        value = loss(plain)(one.kind, *one.inputs)
        value.backward()
        return one.trained, float(value.detach()), float(update(optimizer, plain.parameters()))

    assert list(steps(graphs.step)) == list(steps(plainly))
    assert torch.equal(module.weight, plain.weight)
    assert captured == [*KINDS]


def test_what_asks_the_host_is_not_captured(captured: list[TrainStep]) -> None:
    module = nn.Linear(4, 4)
    replayable = Replayable(given=given, loss=loss(module), follows=lambda kind: kind.point is None)
    list(steps(StepGraphs(replayable, module, adamw(module, weight_decay=0.1)).step))
    assert captured == [KINDS[0]]


def test_small_models_in_one_piece_on_a_gpu_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(4, 4)
    on_gpu = SimpleNamespace(parameters=lambda: [SimpleNamespace(is_cuda=True, numel=lambda: 20)])
    assert not worth_capturing(module, Ranks())
    assert worth_capturing(on_gpu, Ranks())  # type: ignore[arg-type]  # all that is asked of it
    assert not worth_capturing(on_gpu, Ranks(parts=2))  # type: ignore[arg-type]  # as above
    assert not worth_capturing(on_gpu, Ranks(recompute=True))  # type: ignore[arg-type]  # as above
    monkeypatch.setattr(step_graphs, "LARGEST", 19)
    assert not worth_capturing(on_gpu, Ranks())  # type: ignore[arg-type]  # as above
