"""Whether what says that it can be captured asks nothing of the host: a graph that is replayed does not ask again.

Every function of torch that such a policy calls is looked at on its way into torch. What a first generation sets up once for
all, as constants that are kept, is left alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from varbench.check import stand_ins
from varbench.check.subject import PlannedRow
from varbench.policies import StoredForm

Given = TypeVar("Given")

_NUMBERS = {
    getattr(owner, name)
    for owner, names in (
        (torch, ("tensor", "as_tensor", "asarray", "from_numpy", "nonzero", "masked_select", "unique", "equal", "allclose")),
        (
            Tensor,
            (
                "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select",
                "unique", "equal", "allclose",
            ),
        ),
    )
    for name in names
}  # fmt: skip


def asks_nothing_of_the_host(subject: PlannedRow) -> Iterator[str]:
    """A policy that is capturable looks at no number on the host, brings none from there, and keeps nothing between calls."""
    watch = _HostWatch()
    row = stand_ins.replaced(subject.row, "without the host", watch.policy, watch.policy)
    if not watch.policies:
        return
    subject.generate(row)
    before = [_kept(policy) for policy in watch.policies]
    with watch:
        subject.generate(row)
    yield from sorted(watch.seen)
    for policy, was in zip(watch.policies, before, strict=True):
        if _kept(policy) != was:
            yield f"{type(policy).__name__} is capturable, and is not after a generation what it was before"


def _kept(policy: Any) -> object:
    try:
        return pickle.dumps(vars(policy))
    except Exception:  # of what cannot be written down, that it is the same things
        return {name: id(value) for name, value in vars(policy).items()}


class _HostWatch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.policies: list[Any] = []
        self.seen: set[str] = set()
        self._asked: str | None = None

    def policy(self, own: Any) -> Any:
        if not own.capturable:
            return own
        self.policies.append(own)
        return _WatchedPolicy(own, self)

    def told(self, where: str, method: Callable[..., Given], *given: Any, **more: Any) -> Given:
        self._asked = where
        try:
            return method(*given, **more)
        finally:
            self._asked = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._asked is not None and (func in _NUMBERS or _index_from_the_host(func, args)):
            name = "an index of Python's" if func not in _NUMBERS else getattr(func, "__name__", str(func))
            self.seen.add(f"{self._asked} is capturable, and calls {name}, which the host has a part in")
        return func(*args, **(kwargs or {}))


def _index_from_the_host(func: Any, args: Any) -> bool:
    """Places in a list are brought from the host; of a mask it has to know how many there are."""
    if func not in (Tensor.__getitem__, Tensor.__setitem__):
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(
        isinstance(part, (list, range)) or (isinstance(part, Tensor) and part.dtype == torch.bool) for part in index
    )


class _WatchedPolicy(stand_ins.StandIn):
    def __init__(self, asked: Any, watch: _HostWatch) -> None:
        super().__init__(asked)
        self._watch = watch

    def _name(self, what: str) -> str:
        return f"{type(self.asked).__name__}.{what}"

    def pick(self, *given: Any, **more: Any) -> Tensor:
        places: Tensor = self._watch.told(self._name("pick"), self.asked.pick, *given, **more)
        return places

    def fill(self, *given: Any, **more: Any) -> Tensor:
        filled: Tensor = self._watch.told(self._name("fill"), self.asked.fill, *given, **more)
        return filled

    def note(self, *given: Any, **more: Any) -> Tensor:
        noted: Tensor = self._watch.told(self._name("note"), self.asked.note, *given, **more)
        return noted

    @property
    def form(self) -> StoredForm | None:
        form: StoredForm | None = self.asked.form
        if form is None:
            return None
        encode, decode, watch = form.encode, form.decode, self._watch
        return replace(
            form,
            encode=lambda x: watch.told(self._name("form.encode"), encode, x),
            decode=lambda parts: watch.told(self._name("form.decode"), decode, parts),
        )
