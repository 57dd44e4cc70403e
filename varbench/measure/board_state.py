"""Whether a GPU is as its maker sells it, and whether it slowed down or was shared meanwhile. Asked from outside of any subject."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from varbench.measure.environment import descendants
from varbench.measure.nvml import NvmlError, device, others_on

SLOWED = 0.01
"""A share of the time for which a board may have been slowed down."""
LOW = 0.98
"""Of its maker's power limit: less than this share is a limit that someone has set."""

CAUSES = {
    "NVML_PERF_POLICY_THERMAL": "heat",
    "NVML_PERF_POLICY_BOARD_LIMIT": "its board's limit",
    "NVML_PERF_POLICY_RELIABILITY": "its supply",
}
"""By NVML's name. To stay within the maker's own power limit is how a card works, and no fault."""

REASONS = {0x08: "its hardware's own protection", 0x20: "heat", 0x40: "heat", 0x80: "its supply"}
"""The same by the bits of what NVML says of this moment: of clocks that hardware, driver or supply hold down."""


@dataclass(frozen=True, kw_only=True)
class BoardState:
    settings: tuple[str, ...] = ()
    """What is not as the maker sells it, in words."""
    slowed: dict[str, int] = field(default_factory=dict)
    """Nanoseconds since the driver was loaded for which it was slower, by the cause in words; empty where they are not counted."""
    slow: tuple[str, ...] | None = ()
    """By what it is slower at this moment, where that is not counted; None where it does not tell that either."""
    others: tuple[int, ...] | None = ()
    """Processes on it that are not of this run; None where it does not list this run's either."""

    def unfit(self, later: BoardState, *, seconds: float) -> Iterator[str]:
        """Why what was timed between here and there says nothing of such a card."""
        yield from sorted({*self.settings, *later.settings})
        if others := sorted({*(self.others or ()), *(later.others or ())}):
            yield f"others were on it, processes {', '.join(map(str, others))}"
        for cause, before in self.slowed.items():
            share = (later.slowed.get(cause, before) - before) / 1e9 / seconds
            if share > SLOWED:
                yield f"it was slowed down by {cause} for {share:.0%} of the time"


def board_state(uuid: str | None) -> BoardState | None:
    """The state now; None without a GPU or without NVML. What a board does not tell is left out."""
    if uuid is None:
        return None
    try:
        with device(uuid=uuid, pci=None) as (pynvml, handle):
            slowed = _slowed(pynvml, handle)
            return BoardState(
                settings=tuple(_settings(pynvml, handle)),
                slowed=slowed,
                slow=() if slowed else _slow(pynvml, handle),
                others=_others(pynvml, handle),
            )
    except NvmlError:
        return None


class BoardWatch:
    """Of the time from here on; of no board, it has nothing to say."""

    def __init__(self, uuid: str | None) -> None:
        self._uuid, self._before, self._began = uuid, board_state(uuid), time.monotonic()
        self._looks: list[tuple[str, ...]] = []

    def poll(self) -> None:
        """Between two calls, while the board is still warm: for one that tells only by what it is slower just then."""
        if self._before is None or self._before.slowed or self._before.slow is None:
            return
        with contextlib.suppress(NvmlError), device(uuid=self._uuid, pci=None) as (pynvml, handle):
            self._looks.append(_slow(pynvml, handle) or ())

    def unfit(self) -> tuple[str, ...]:
        self.poll()
        now = board_state(self._uuid)
        if self._before is None or now is None:
            return ()
        seen = Counter(cause for causes in self._looks for cause in causes)
        return (
            *self._before.unfit(now, seconds=time.monotonic() - self._began),
            *(f"it was slowed down by {cause} at {count} of {len(self._looks)} looks" for cause, count in seen.items()),
        )

    @property
    def unseen(self) -> str | None:
        """What of the board cannot be seen, and might have spoilt its times."""
        if self._uuid is None:
            return None
        before = self._before or BoardState(slow=None, others=None)
        hidden = ["throttling"] * (not before.slowed and before.slow is None)
        hidden += ["other processes"] * (before.others is None)
        return f"{' and '.join(hidden)} cannot be seen: NVML does not tell" if hidden else None


def _settings(pynvml: Any, handle: Any) -> list[str]:
    found = []
    with contextlib.suppress(pynvml.NVMLError):
        now, usual = (
            ask(handle) / 1000
            for ask in (pynvml.nvmlDeviceGetEnforcedPowerLimit, pynvml.nvmlDeviceGetPowerManagementDefaultLimit)
        )
        if now < LOW * usual:
            found.append(f"its power is limited to {now:.0f} W, where its maker has {usual:.0f} W")
    with contextlib.suppress(pynvml.NVMLError):
        if not pynvml.nvmlDeviceGetCurrentEccMode(handle) and pynvml.nvmlDeviceGetDefaultEccMode(handle):
            found.append("ECC is off, and its maker has it on")
    with contextlib.suppress(pynvml.NVMLError):
        if pynvml.nvmlDeviceGetMigMode(handle)[0]:
            found.append("it is cut into parts (MIG)")
    return found


def _slowed(pynvml: Any, handle: Any) -> dict[str, int]:
    found = {}
    for name, cause in CAUSES.items():
        with contextlib.suppress(pynvml.NVMLError):
            found[cause] = int(pynvml.nvmlDeviceGetViolationStatus(handle, getattr(pynvml, name)).violationTime)
    return found


def _slow(pynvml: Any, handle: Any) -> tuple[str, ...] | None:
    """By the name that NVML has for it now, or the one that it had before."""
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        with contextlib.suppress(pynvml.NVMLError, AttributeError):
            told = getattr(pynvml, name)(handle)
            return tuple(dict.fromkeys(cause for bit, cause in REASONS.items() if told & bit))
    return None


def _others(pynvml: Any, handle: Any) -> tuple[int, ...] | None:
    with contextlib.suppress(NvmlError):
        return others_on(pynvml, handle, own=descendants())
    return None
