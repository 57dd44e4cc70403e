"""Captured generations, with graphs that remember nothing: what is looked at when, what is kept, and what happens when memory is short.
That graphs do what was captured only a GPU shows (`test_gpu.py`)."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
from test_conformance import ComputesHalf, KeepsHalf

from varbench import load_pipeline
from varbench.engine.captured import Graphs, Made, can_be_captured
from varbench.engine.generate import Generated
from varbench.engine.loop import Observer, Sampling
from varbench.engine.pipeline import Pipeline
from varbench.engine.subjects import Answer, Ask, EngineSubject
from varbench.measure import timed_call
from varbench.measure.calls import Request
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.record import Energy
from varbench.run.tasks import making


class Graph:
    """Counts; what it would launch is there already."""

    log: list[str]

    def capture_begin(self, pool: object) -> None:
        self.log.append("begin")

    def capture_end(self) -> None:
        self.log.append("end")

    def replay(self) -> None:
        self.log.append("replay")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Graph.log = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "CUDAGraph": Graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda one: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "empty_cache": lambda: Graph.log.append("released"),
        "graph_pool_handle": lambda: object(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return Graph.log


def generations(pipe: Pipeline, calls: int) -> list[list[tuple[str, int]]]:
    found = []
    for _ in range(calls):
        moments: list[tuple[str, int]] = []
        pipe.generate(models.LABELS, seed=1, observer=lambda moment, step, into=moments: into.append((moment, step)))  # type: ignore[misc]  # a default of a lambda
        found.append(moments)
    return found


def test_an_observer_sees_the_same_moments(log: list[str]) -> None:
    pipe = models.pipeline()
    plain = generations(pipe, 1)
    pipe.graphs = True
    assert generations(pipe, 3) == 3 * plain
    steps = len(models.SPEC.sides)
    # What comes before the first step, each step's network and the rest of it, and the decoder.
    assert log.count("begin") == log.count("end") == 2 + 2 * steps
    assert log.count("replay") == 3 * (2 + 2 * steps)


def test_what_is_returned_is_not_what_the_next_call_writes(log: list[str]) -> None:
    pipe = models.pipeline()
    exact = pipe.generate(models.LABELS, seed=1)
    pipe.graphs = True
    first, second = (pipe.generate(models.LABELS, seed=1) for _ in range(2))
    assert torch.equal(first.images, exact.images) and torch.equal(first.tokens, exact.tokens)
    assert first.trace == exact.trace
    assert first.images.data_ptr() != second.images.data_ptr() and first.tokens.data_ptr() != second.tokens.data_ptr()


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("h2o@b25:recent=0.5", "h2o@b25:recent=0.1", False),
        ("streaming@b25", "streaming@b25:sinks=1", False),
        ("hack@b25:merge=true", "hack@b25:merge=true:weighed=true", False),
        ("full_var", "variant@untrained/full", True),
    ],
)
def test_rows_of_one_plan_whose_policies_choose_otherwise_are_captured_apart(
    first: str, second: str, alike: bool, log: list[str]
) -> None:
    """How many entries are kept the plan says, and not which; graphs of the one would make its images for the other."""
    pipe, sampling = models.pipeline(), Sampling(cfg=1.5, top_k=0, top_p=0.0)
    assert pipe.compile(first)[0].digest == pipe.compile(second)[0].digest
    pipe.graphs = True
    pipe.generate(models.LABELS, seed=1, method=first)
    assert pipe.is_ready(first, len(models.LABELS), sampling)
    assert pipe.is_ready(second, len(models.LABELS), sampling) is alike


def test_tokens_logits_and_watchers_are_served_without(log: list[str]) -> None:
    pipe = models.pipeline()
    tokens = pipe.generate(models.LABELS).tokens
    pipe.graphs = True
    pipe.generate(models.LABELS, tokens=tokens)
    pipe.generate(models.LABELS, return_logits=True)
    with pipe.alone("full_var"):
        pipe.generate(models.LABELS)
    assert "begin" not in log


def test_where_memory_is_short_the_others_are_given_up_and_what_has_no_room_alone_is_not_captured(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of ten: an image takes one while it is made, and what is captured keeps more."""
    keeps, held = {"small": 2, "copied": 8, "vast": 12}, dict[str, int]()
    given = (torch.arange(2), torch.arange(2).unsqueeze(1), None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: [held.pop(key) for key in {*held} - graphs._known.keys()])  # type: ignore[arg-type]  # keys are names here
    graphs, out = Graphs(), models.pipeline().generate(models.LABELS)
    codes = Generated(tokens_BL=out.tokens, f_hat_BDhw=out.images, logits_BLV=None, trace=out.trace)
    made = Made(codes=codes, images=out.images)

    def call(key: str | None, needs: int = 1) -> list[str]:
        """What was done."""
        log.clear()

        def make(labels_B: torch.Tensor, streams_B1: torch.Tensor, observer: Observer | None) -> Made:
            captures = bool(log) and log[-1] == "begin"
            if captures:
                held[key] = keeps[key]  # type: ignore[index]  # captured under a name
            if sum(held.values()) + needs > 10:
                raise torch.OutOfMemoryError
            return made

        graphs.make(key, make, *given)
        return [event for event in log if event in ("begin", "replay")]

    assert call("small") == ["begin", "replay"] and call("small") == ["replay"]
    assert call("copied") == ["begin", "begin", "replay"], "now there is room"
    assert call("small") == ["begin", "begin", "replay"]
    with pytest.warns(UserWarning, match="no room to capture"):
        assert call("vast") == ["begin", "begin"] and graphs.is_ready("vast"), "operator by operator from here on"
    assert call("vast") == [] and call("small") == ["begin", "replay"]
    assert call(None, needs=9) == [] and call("small") == ["begin", "replay"]
    with pytest.raises(torch.OutOfMemoryError):
        call(None, needs=11)
    with pytest.raises(torch.OutOfMemoryError):
        call("vast", needs=11)


def test_where_the_piece_that_captures_share_has_no_room_the_capture_ends(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that were left capturing could not even be waited for."""
    pipe, empty = models.pipeline(), torch.empty
    exact = pipe.generate(models.LABELS, seed=1)

    def short(*size: Any, **given: Any) -> torch.Tensor:
        if given.get("dtype") == torch.uint8:
            raise torch.OutOfMemoryError
        return empty(*size, **given)

    monkeypatch.setattr(torch, "empty", short)
    pipe.graphs = True
    with pytest.warns(UserWarning, match="no room to capture"):
        assert torch.equal(pipe.generate(models.LABELS, seed=1).images, exact.images)
    assert log == ["released", "begin", "end", "released"]
    sampling = Sampling(cfg=1.5, top_k=0, top_p=0.0)
    assert pipe.captures("full_var") and not pipe.is_captured("full_var", len(models.LABELS), sampling)
    pipe._graphs.forget()
    assert pipe.is_captured("full_var", len(models.LABELS), sampling), "later there may be room"


def test_energy_is_not_that_of_captures_and_a_record_says_what_was_launched(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look from outside gives up what was captured, and with it what had no room."""
    pipe = models.pipeline()
    subject = EngineSubject(pipe=pipe, cfg=1.5, top_k=0, top_p=0.0)
    pipe.graphs = True
    with pipe.alone("full_var"):
        pass
    counted: list[list[str]] = []

    def energy(call: Any, **where: Any) -> Energy:
        log.clear()
        call()
        counted.append(list(log))
        return Energy(joules_per_image=1.0, window_seconds=1.0, source="a test")

    monkeypatch.setattr(making, "energy", energy)
    making.answer(subject, Request(row="full_var", labels=(1, 2), seed=0, look="energy"))
    assert {*counted[0]} == {"replay"}
    look = Request(row="full_var", labels=(1, 2), seed=0, look="memory")
    assert "CUDA graphs" in str(making.answer(subject, look).arithmetic)
    sampling = Sampling(cfg=1.5, top_k=0, top_p=0.0)
    pipe._graphs._too_large.add(pipe._kind("full_var", 2, sampling))
    assert "CUDA graphs" not in str(making.answer(subject, look).arithmetic)


def test_a_call_that_begins_anew_is_timed_from_there(log: list[str]) -> None:
    """Memory is short in the midst of a call of a row that is not captured, while something is."""
    pipe = models.pipeline()
    subject = EngineSubject(pipe=pipe, cfg=1.5, top_k=0, top_p=0.0)
    ask = Ask(row="full_var", labels=models.LABELS, seed=1, first=0)
    plain = timed_call.timed(subject, ask)[2]
    pipe.graphs = True
    pipe.generate(models.LABELS)
    given = iter((torch.OutOfMemoryError, None))

    def make(labels_B: torch.Tensor, streams_B1: torch.Tensor, observer: Observer | None) -> Made:
        assert observer is not None
        for step in range(3):
            for moment in ("start", "logits", "end"):
                observer(moment, step)
            if step == 1 and (fails := next(given, None)):
                time.sleep(0.3)
                raise fails
        return made

    out = models.pipeline().generate(models.LABELS)
    codes = Generated(tokens_BL=out.tokens, f_hat_BDhw=out.images, logits_BLV=None, trace=out.trace)
    made = Made(codes=codes, images=out.images)
    again = SimpleNamespace(
        model=subject.model, device=subject.device, prepare=lambda ask: None,
        make=lambda ask, observer: Answer(
            images=pipe._graphs.make(None, make, torch.arange(2), torch.arange(2).unsqueeze(1), observer).images,
            tokens=None, trace=None,
        ),
    )  # fmt: skip
    marks = timed_call.timed(again, ask)[2]
    assert len(plain.starts) == len(models.SPEC.sides)
    assert len(marks.starts) == len(marks.logits) == len(marks.ends) == 3
    assert marks.decoded < 0.25 and marks.ended - marks.began < 0.25 < marks.began - marks.asked
    assert pipe._graphs._known == {}


@pytest.mark.parametrize(
    ("method", "captured"),
    [
        ("full_var", True), ("variant@d2", True), ("code@training_free/n4", True), ("guidance@from4", True), ("fastvar@r60", True), ("fastvar@r60:share=true", True),
        ("h2o@b25", True), ("scalekv@b25", True), ("quant_cache@b8", True), ("dmoe@untrained/m50", False), ("skipvar@s84", False),
    ],
)  # fmt: skip
def test_what_can_be_captured(method: str, captured: bool) -> None:
    assert can_be_captured(*load_pipeline("tiny").compile(method)) is captured


@pytest.mark.parametrize("policy", [KeepsHalf, ComputesHalf])
def test_a_policy_that_does_not_say_so_is_not_captured(policy: Any) -> None:
    kind = {KeepsHalf: "caches", ComputesHalf: "tokens"}[policy]
    owned = Owned(plugin="test", policy=policy(models.SPEC))
    row = RowPolicies(name="test", **{kind: (owned,) if kind == "caches" else owned})  # type: ignore[arg-type]  # by name
    plan = compile_plan(models.SPEC, row)
    assert not can_be_captured(plan, row)
    policy.capturable = True
    try:
        assert can_be_captured(plan, row)
    finally:
        del policy.capturable
