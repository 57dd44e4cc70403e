"""Policies with the plugin that each came from, and the one way to ask them: what goes wrong is told with plugin and question."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from varbench.errors import PlanError, UserError
from varbench.experts import WidthPolicy
from varbench.policies import (
    MAIN,
    CacheStrategy,
    DecisionPolicy,
    DepthPolicy,
    Generator,
    GuidancePolicy,
    StepPolicy,
    TokenPolicy,
    Transformed,
)
from varbench.spec import ModelSpec

Policy = TypeVar("Policy")
Answer = TypeVar("Answer")
Question = ParamSpec("Question")


@dataclass(frozen=True, kw_only=True)
class Owned(Generic[Policy]):
    """A policy and the plugin that it came from."""

    plugin: str
    policy: Policy

    def ask(self, method: Callable[Question, Answer], *given: Question.args, **named: Question.kwargs) -> Answer:
        """What a method of the policy answers. What it raises is the plugin's failure."""
        try:  # and no context manager, for it is asked tens of thousands of times
            return method(*given, **named)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failed(error, method, given) from error

    def every(
        self, method: Callable[Question, Iterable[Answer]], *given: Question.args, **named: Question.kwargs
    ) -> tuple[Answer, ...]:
        """All that a method lists."""
        try:
            return tuple(method(*given, **named))
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failed(error, method, given) from error

    def agrees(self, method: Callable[Question, bool], *given: Question.args, **named: Question.kwargs) -> bool:
        """A yes or no: a forgotten `return` is no answer."""
        answer = self.ask(method, *given, **named)
        if type(answer).__name__ not in ("bool", "bool_"):  # numpy's is no subclass of Python's
            raise PlanError(f"{self._question(method, given)} answers {answer!r}; give True or False")
        return bool(answer)

    def count(
        self, method: Callable[Question, int | None], *given: Question.args, **named: Question.kwargs
    ) -> int | None:
        """A whole number or None."""
        answer = self.ask(method, *given, **named)
        return None if answer is None else self.whole(answer, method, *given)

    def whole(self, number: Any, method: Callable[..., Any], *given: Any) -> int:
        """A plain integer: what only derives from one could compare as it likes."""
        try:
            return operator.index(number)
        except TypeError:
            question = self._question(method, given)
            raise PlanError(f"{question} answers {number!r}; layers, tokens and budgets are whole numbers") from None

    def _failed(self, error: BaseException, method: Callable[..., Any], given: tuple[Any, ...]) -> PlanError:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return PlanError(f"{self._question(method, given)} failed: {message}")

    def _question(self, method: Callable[..., Any], given: tuple[Any, ...]) -> str:
        name = getattr(method, "__name__", "?")
        shown = (repr(one) if isinstance(one, (int, str)) else type(one).__name__ for one in given)
        return f"{self.plugin}: {type(self.policy).__name__}.{name}({', '.join(shown)})"


@dataclass(frozen=True, kw_only=True)
class OwnedTransform(Owned[Transformed]):
    """A transform of one backbone."""

    part: str
    """The plugin as the row writes it, as in `int8@g64`: it names the network that the transform makes."""
    backbone: str


@dataclass(frozen=True, kw_only=True)
class RowPolicies:
    """All policies of one row. What is None behaves as in the full model."""

    name: str
    depth: Owned[DepthPolicy] | None = None
    steps: Owned[StepPolicy] | None = None
    guidance: Owned[GuidancePolicy] | None = None
    tokens: Owned[TokenPolicy] | None = None
    width: Owned[WidthPolicy] | None = None
    caches: tuple[Owned[CacheStrategy], ...] = ()
    decision: Owned[DecisionPolicy] | None = None
    transforms: tuple[OwnedTransform, ...] = ()
    """In the order in which they are applied."""
    generator: Owned[Generator] | None = None
    """Replaces the loop, and with it the plan."""

    @property
    def backbones(self) -> dict[str, ModelSpec]:
        """Models beside the main one that its steps run on."""
        given = self.steps.policy.backbones if self.steps else {}
        return {name: spec for name, spec in given.items() if name != MAIN}
