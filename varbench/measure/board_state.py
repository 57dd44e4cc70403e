"""Whether a GPU is as its maker sells it, and whether it slowed down while something was timed. Asked from outside of any subject."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from varbench.measure.nvml import NvmlError, device

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


@dataclass(frozen=True, kw_only=True)
class BoardState:
    settings: tuple[str, ...] = ()
    """What is not as the maker sells it, in words."""
    slowed: dict[str, int] = field(default_factory=dict)
    """Nanoseconds since the driver was loaded for which it was slower, by the cause in words."""

    def unfit(self, later: BoardState, *, seconds: float) -> tuple[str, ...]:
        """Why what was timed between here and there says nothing of such a card."""
        causes = {
            cause: (later.slowed[cause] - before) / 1e9 / seconds
            for cause, before in self.slowed.items()
            if cause in later.slowed
        }
        return (
            *sorted({*self.settings, *later.settings}),
            *(f"it was slowed down by {cause} for {share:.0%} of the time" for cause, share in causes.items() if share > SLOWED),
        )  # fmt: skip


def board_state(uuid: str | None) -> BoardState | None:
    """The state now; None without a GPU or without NVML. What a board does not tell is left out."""
    if uuid is None:
        return None
    try:
        with device(uuid=uuid, pci=None) as (pynvml, handle):
            return BoardState(settings=tuple(_settings(pynvml, handle)), slowed=_slowed(pynvml, handle))
    except NvmlError:
        return None


class BoardWatch:
    """Of the time from here on; of no board, it has nothing to say."""

    def __init__(self, uuid: str | None) -> None:
        self._uuid, self._before, self._began = uuid, board_state(uuid), time.monotonic()

    def unfit(self) -> tuple[str, ...]:
        now = board_state(self._uuid)
        if self._before is None or now is None:
            return ()
        return self._before.unfit(now, seconds=time.monotonic() - self._began)


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
