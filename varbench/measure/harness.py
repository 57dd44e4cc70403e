"""What measuring itself costs: a method that does nothing, put through the same clock."""

from __future__ import annotations

from varbench.base import stats
from varbench.measure.clock import Marker, Stop, clock_for, time_calls

CALLS = 200


def null_cost(device: str = "cpu") -> stats.Interval:
    """Seconds that the harness adds to a call: the median of timing nothing, three marks each."""
    import torch

    def nothing(mark: Marker) -> None:
        for column in ("transformer", "with_decoder", "end_to_end"):
            mark(column)

    clock = clock_for(torch.device(device))
    time_calls(nothing, clock=clock, stop=Stop(count=10, seconds=0.0))
    samples = time_calls(nothing, clock=clock, stop=Stop(count=CALLS, seconds=0.0))
    return stats.bootstrap_median([samples.seconds["end_to_end"]])
