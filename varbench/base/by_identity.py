"""What is made of an object once, however many hold it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def once(make: Callable[[Given], Found]) -> Callable[[Given], Found]:
    """`make`, asked once for each object. They are told apart by identity, so that they need no hash and none is compared; they
    stay as long as what is returned, so that nothing else goes by theirs."""
    known: dict[int, tuple[Given, Found]] = {}

    def made(given: Given) -> Found:
        if id(given) not in known:
            known[id(given)] = given, make(given)
        return known[id(given)][1]

    return made
