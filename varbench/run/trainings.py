"""What trainings that run at the same time show of themselves, in the one display of the run."""

from __future__ import annotations

from collections.abc import Iterable

from varbench.base.display import Display
from varbench.run.messages import Alive, Trained


class Trainings:
    def __init__(self, display: Display, wanted: Iterable[str]) -> None:
        self._display = display
        self._shares = dict.fromkeys(wanted, 0.0)
        self._at: dict[str, str] = {}
        """What each of those that run is at."""

    @property
    def title(self) -> str:
        return ", ".join(self._shares)

    def reached(self, name: str, alive: Alive) -> None:
        # A plugin shares the process that tells of it.
        self._shares[name] = min(1.0, max(self._shares[name], alive.share or 0.0))
        self._at[name] = alive.text
        self._show()

    def ended(self, name: str, found: Trained | None) -> None:
        """Where it was trained, its last words are its figures."""
        at = self._at.pop(name, "")
        if found is not None and found.note:
            self._display.note(f"  {name}: {found.note}")
        if found is not None and at:
            self._display.note(f"  {at}")
        self._shares[name] = 1.0
        self._show()

    def _show(self) -> None:
        done = sum(self._shares.values()) / len(self._shares)
        several = len(self._shares) > 1
        self._display.reached(done, *(f"{name}: {text}" if several else text for name, text in self._at.items()))
