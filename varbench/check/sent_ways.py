"""Decisions that stand in for a plugin's own, and ask it all but where images go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from varbench.check.stand_ins import Notes, StandIn, renamed
from varbench.plan.owned import Owned
from varbench.policies import DecisionPolicy, SoFar
from varbench.rows.grammar import Row


class _Sent(StandIn):
    """Sends images where it is told, without asking."""

    def __init__(self, asked: DecisionPolicy, ways: Sequence[int]) -> None:
        super().__init__(asked)
        self._sent = ways

    def decide(self, seen: SoFar) -> Sequence[int]:
        return [self._sent[image % len(self._sent)] for image in range(len(seen.map_BDhw))]


class _NotedAnswers(StandIn):
    """Notes what the plugin answers, and whether it changes what it is shown."""

    def __init__(self, asked: DecisionPolicy, answers: list[Tensor], notes: Notes) -> None:
        super().__init__(asked)
        self._answers, self._notes = answers, notes

    def decide(self, seen: SoFar) -> Sequence[int] | Tensor:
        given = [seen.map_BDhw, seen.logits_BlV, *seen.previews]
        before = [tensor.clone() for tensor in given]
        answer: Sequence[int] | Tensor = self.asked.decide(seen)
        if not all(map(torch.equal, before, given)):
            self._notes.inputs.append("decide changed the map, logits or previews that it was shown")
        self._answers.append(torch.as_tensor(answer).clone())
        return answer


def sent(row: Row, ways: Sequence[int]) -> Row:
    """The row whose images go these ways, by turns."""
    return _deciding(row, f"sent {'/'.join(map(str, ways))}", lambda own: _Sent(own, ways))


def going_on(row: Row) -> Row:
    """The row whose images all go the first way, where it has several."""
    return sent(row, (0,)) if row.policies.decision is not None else row


def noted(row: Row, answers: list[Tensor], notes: Notes) -> Row:
    return _deciding(row, "noted", lambda own: _NotedAnswers(own, answers, notes))


def undecided(row: Row) -> Row:
    """The row without its decision."""
    return renamed(row, "undecided", replace(row.policies, decision=None))


def _deciding(row: Row, what: str, made: Callable[[DecisionPolicy], Any]) -> Row:
    owned = row.policies.decision
    if owned is None:
        return row
    decision: Owned[DecisionPolicy] = Owned(plugin=owned.plugin, policy=made(owned.policy))
    return renamed(row, what, replace(row.policies, decision=decision))
