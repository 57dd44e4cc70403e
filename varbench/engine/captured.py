"""Generations as CUDA graphs, cut where an observer looks: launched a stretch at a time in place of operator by operator, which
is most of a small batch's time.

Only of rows that run no code of theirs within the loop: what a graph does is what the capture did.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from varbench.engine.generate import Generated
from varbench.engine.loop import Observer
from varbench.plan.owned import RowPolicies
from varbench.plan.steps import Plan


@dataclass(frozen=True, kw_only=True)
class Made:
    codes: Generated
    images: Tensor


Make = Callable[[Tensor, Tensor, Observer | None], Made]
"""Of labels (B,) and noise streams (B, 1)."""


AMPLE = 1.15
"""Times the bytes that a call takes at most are kept for what is captured: pieces do not fit together without gaps."""


def can_be_captured(plan: Plan, row: RowPolicies) -> bool:
    """Whether all that a generation does follows from the plan, and from code of the row's that says that it can be captured.
    Tokens are brought together expert by expert, as many as come, which the host has to be told."""
    asked: list[Any] = [*asked_within(plan, row), *(owned.policy for owned in row.transforms)]
    return plan.decision is None and row.width is None and all(policy.capturable for policy in asked)


def asked_within(plan: Plan, row: RowPolicies) -> list[Any]:
    """Policies whose code runs between what the plan says: what they choose, and what they store, it does not tell."""
    calls = [call for step in plan.steps for call in step.calls]
    picks = any(use.picked for call in calls for use in call.cache)
    asked: list[Any] = [owned.policy for owned in row.caches if picks or owned.policy.form is not None]
    subs = [sub for call in calls for sub in call.sub_layers]
    if row.tokens is not None and any(sub.picked or sub.noted for sub in subs):
        asked.append(row.tokens.policy)
    return asked


def is_watched() -> bool:
    """Whether somebody is shown operators, of which a graph that is replayed has none."""
    return torch._C._len_torch_dispatch_stack() > 0


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where captures take their memory from. It is shared, since one runs at a time and leaves nothing behind but what is copied."""

    pool: Any
    room: int
    """Bytes, taken in one piece by the first: else each scale, larger than those before, would find no piece large enough."""


class Graphs:
    """Those of a pipeline, by what a generation depends on besides labels and noise."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Captured] = {}
        self._too_large: set[Hashable] = set()
        """What has no room although nothing else is captured."""
        self._place: _Place | None = None
        self._stream: torch.cuda.Stream | None = None
        """That all is captured on: what was given back on a stream is found again on that one alone. What libraries keep for each
        stream they take when something runs on it for the first time, which is not captured."""

    def is_ready(self, key: Hashable) -> bool:
        """Whether there is nothing to capture any more."""
        return key in self._known or self.has_no_room(key)

    def has_no_room(self, key: Hashable) -> bool:
        return key in self._too_large

    def make(
        self, key: Hashable | None, make: Make, labels_B: Tensor, streams_B1: Tensor, observer: Observer | None
    ) -> Made:
        """By its graphs, captured now if they are not there; without a key, operator by operator. Where memory is short, all other
        graphs are given up, and then its own. What is looked at may begin anew."""
        try:
            return self._made(key, make, labels_B, streams_B1, observer)
        except torch.OutOfMemoryError:
            if self._known.keys() <= {key}:  # there are no others
                if key is None or self.has_no_room(key):
                    raise
                self._too_large.add(key)
                warnings.warn("no room to capture a generation: it is launched operator by operator", stacklevel=2)
        self._give_up()
        return self.make(key, make, labels_B, streams_B1, observer)

    def _made(
        self, key: Hashable | None, make: Make, labels_B: Tensor, streams_B1: Tensor, observer: Observer | None
    ) -> Made:
        if key is None or self.has_no_room(key):
            return make(labels_B, streams_B1, observer)
        if key not in self._known:
            self._stream = self._stream or torch.cuda.Stream()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            with _aside(self._stream):
                made = _like(make(labels_B, streams_B1, None))  # sets up what libraries and kernels need
            room = torch.cuda.max_memory_allocated() - before
            if self._place is not None and room > self._place.room:
                self._give_up()
            else:
                _release()
            if self._place is None:
                self._place = _Place(pool=torch.cuda.graph_pool_handle(), room=round(AMPLE * room))
            with _aside(self._stream):
                self._known[key] = _Captured(make, labels_B, streams_B1, made, place=self._place, first=not self._known)
        return self._known[key](labels_B, streams_B1, observer)

    def forget(self) -> None:
        """Weights are about to move, or memory is wanted; later there may be more of it."""
        self._too_large.clear()
        if self._known:
            self._give_up()

    def _give_up(self) -> None:
        self._known.clear()
        self._place = None
        _release()


@contextlib.contextmanager
def _aside(stream: torch.cuda.Stream) -> Iterator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _release() -> None:
    """Gives all memory back that nothing holds."""
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()


class _Captured:
    @torch.inference_mode()
    def __init__(
        self, make: Make, labels_B: Tensor, streams_B1: Tensor, made: Made, *, place: _Place, first: bool
    ) -> None:
        """What is made is put into `made`, so that nothing stays in the shared memory."""
        self._labels_B, self._streams_B1 = labels_B.clone(), streams_B1.clone()
        self._made = made
        self._stretches: list[tuple[torch.cuda.CUDAGraph, list[tuple[str, int]]]] = []
        """Each with what is looked at when it is done."""
        graph = self._begin(place.pool)

        def cut(moment: str, step: int) -> None:
            nonlocal graph
            if moment == "start" and self._stretches:  # nothing comes between the end of a step and the next one
                self._stretches[-1][1].append((moment, step))
                return
            graph.capture_end()
            self._stretches.append((graph, [(moment, step)]))
            graph = self._begin(place.pool)

        try:
            if first:
                torch.empty(place.room, dtype=torch.uint8, device=labels_B.device)  # given back at once
            _copy(make(self._labels_B, self._streams_B1, cut), made)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # which says again that it failed
                graph.capture_end()
            raise
        graph.capture_end()
        self._stretches.append((graph, []))

    @staticmethod
    def _begin(pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool)
        return graph

    @torch.inference_mode()
    def __call__(self, labels_B: Tensor, streams_B1: Tensor, observer: Observer | None) -> Made:
        copy = _like(self._made)
        self._labels_B.copy_(labels_B)
        self._streams_B1.copy_(streams_B1)
        for graph, looks in self._stretches:
            graph.replay()
            if observer is not None:
                for look in looks:
                    observer(*look)
        _copy(self._made, copy)
        return copy


def _like(made: Made) -> Made:
    codes = made.codes
    empty = replace(codes, tokens_BL=torch.empty_like(codes.tokens_BL), f_hat_BDhw=torch.empty_like(codes.f_hat_BDhw))
    return Made(codes=empty, images=torch.empty_like(made.images))


def _copy(source: Made, into: Made) -> None:
    into.codes.tokens_BL.copy_(source.codes.tokens_BL)
    into.codes.f_hat_BDhw.copy_(source.codes.f_hat_BDhw)
    into.images.copy_(source.images)
