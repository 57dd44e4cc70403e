"""What a judge asks of a subject's process, and what comes back: plain data, since the two share nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from varbench.plan.trace import Trace
from varbench.record import Energy, LargestBatch, Totals


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call, always timed. Those that are scored and those whose time is kept are asked in the same words but for `threads`,
    where several processes make the scored images; a plugin can tell them apart by it."""

    row: str
    labels: tuple[int, ...]
    seed: int
    first: int = 0
    keep: str | None = None
    """File that images (uint8) and tokens go to; None drops them once they are on the host."""
    look: Literal["memory", "outside", "largest", "energy"] | None = None
    """Look at the call instead of timing it."""
    threads: int | None = None
    """Threads that it may take, where processes share the processors; None for all."""
    release: bool = False
    """Give back afterwards what such calls were set up with: another process wants the device's memory."""


def balanced_labels(count: int, classes: int, *, first: int = 0) -> tuple[int, ...]:
    """Every class as often as any other, to within one."""
    return tuple(place % classes for place in range(first, first + count))


@dataclass(frozen=True, kw_only=True)
class Marks:
    """When things happened in one call: in seconds from its start, by events in the stream on CUDA and by the wall on a CPU. What
    took how long is worked out where no plugin is."""

    clock: str
    starts: tuple[float, ...]
    """Of each step's network, its logits, and the end of the step; none where there are no steps."""
    logits: tuple[float, ...]
    ends: tuple[float, ...]
    decoded: float
    asked: float
    """Before what the call runs on was set up: compiled kernels, captured graphs."""
    began: float
    ended: float
    """When the images lay on the host. These three on the system's monotonic clock, which every process reads alike."""

    @property
    def possible(self) -> bool:
        if not len(self.starts) == len(self.logits) == len(self.ends):
            return False
        times = Times.between(self)
        parts = (times.transformer, times.loop, times.with_decoder, times.end_to_end)
        return all(part > 0 for part in parts if part is not None)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one call, by its clock; the last is always by the wall."""

    clock: str
    transformer: float | None
    """The networks alone, without sampler and quantiser; None where there are no steps."""
    loop: float | None
    """The whole loop over the scales."""
    with_decoder: float
    end_to_end: float
    """From labels to bytes on the host."""
    steps: tuple[float, ...]
    """Of the loop, by step: from the end of the one before, or the start of the call. They add up to the loop."""
    began: float
    ended: float
    """On the system's monotonic clock, which every process reads alike."""
    set_up: float = 0.0
    """Before the call, where what it runs on was not there yet."""

    @classmethod
    def between(cls, marks: Marks) -> Times:
        ends, networks = marks.ends, zip(marks.starts, marks.logits, strict=True)
        return cls(
            clock=marks.clock,
            transformer=sum(logits - start for start, logits in networks) if ends else None,
            loop=ends[-1] if ends else None,
            with_decoder=marks.decoded,
            end_to_end=marks.ended - marks.began,
            # What lies before a step is its own: all of the loop is some step's, wherever the process had to wait.
            steps=tuple(end - before for before, end in pairwise((0.0, *ends))),
            began=marks.began,
            ended=marks.ended,
            set_up=marks.began - marks.asked,
        )


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images that lie in a file, and the hash of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Memory of one call."""

    weights: int
    allocated: int | None
    """Peak of torch's allocator, weights included."""
    reserved: int | None
    left: int | None
    """What the allocator still holds of the call once its result is gone."""
    resident: int | None
    """Peak growth of the resident memory of the process."""
    nvml_process: int | None
    nvml_board: int | None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CountedFlops:
    """FLOPs of a call with its decoder."""

    stated: float | None
    """None where the row does not say."""
    counted: int


@dataclass(frozen=True, kw_only=True)
class Outside:
    """One call as the garbage collector sees it."""

    after_steps: tuple[int, ...]
    """Bytes of tensors that live at the end of each step beyond those before the call."""
    left: int
    """Bytes of all tensors once the call has ended and its result is gone."""
    private: tuple[int, ...] | None = None
    """Bytes of all private memory of the process at the end of each step beyond those before the call; None on a GPU, and
    where the system does not tell."""
    taken: tuple[int, ...] = ()
    """How many images went each way that the plan has, where it has several."""


class Traced(NamedTuple):
    """What was seen of calls of a row for so many images, as one hash; empty where its process did not say."""

    row: str
    images: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    row: str
    images_sha256: str
    tokens_sha256: str | None
    marks: Marks | None = None
    chunk: Chunk | None = None
    trace_sha256: str | None = None
    """Of a timed call's trace, taken once the clock has stopped; None for a row that replaces the loop."""
    trace: Trace | None = None
    """With a look at memory."""
    work: Totals | None = None
    """What a row that replaces the loop says of its work, with a look at memory."""
    products: CountedFlops | None = None
    """Of a row that replaces the loop, with a look at memory."""
    held: int | None = None
    """Of such a row: bytes that the call holds for longer than a step, where it says how many steps it has."""
    from_bytes: bool = False
    """Of such a row: its images lie on the levels of bytes, so they were bytes already; with a look at memory."""
    kernel: str | None = None
    """Attention kernel that torch chose in such a call, with a look at memory; why it is not known is in `missing`."""
    arithmetic: str | None = None
    """Types of that call's products and convolutions, and how they were done."""
    peaks: Peaks | None = None
    outside: Outside | None = None
    repeated: int = 0
    """Images of the call that are another one's pixels, with a look at it from outside."""
    largest: LargestBatch | None = None
    energy: Energy | None = None
    missing: dict[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """Names of global state that the call changed, and that was put back."""

    def traced(self, request: Request) -> Traced:
        return Traced(request.row, len(request.labels), self.trace_sha256 or "")

    def lacking(self, request: Request) -> str | None:
        """What was asked for and is not there, by a process that plugins share."""
        if self.row != request.row:
            return f"an answer for {request.row}"
        if request.look in ("memory", "outside"):
            return None if (self.peaks if request.look == "memory" else self.outside) else f"a look at {request.look}"
        if request.look is None and not (self.marks and self.marks.possible):
            return "times of the call"
        return "its images" if request.keep and not self.chunk and request.look is None else None


Maker = Callable[[Request], Reply]
"""Who is asked: a subject's process, or what stands in its place."""
