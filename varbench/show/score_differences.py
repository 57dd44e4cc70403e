"""What one record's score says beside another's."""

from __future__ import annotations

from varbench.base import stats
from varbench.base.stats import Interval
from varbench.record import Record, Score


def named_score(record: Record, name: str) -> Score | None:
    """A score that has a value."""
    scores = record.quality.scores if record.quality else ()
    return next((score for score in scores if score.name == name and score.value is not None), None)


def interval_of(score: Score) -> Interval:
    """A score without an interval has one of no width."""
    assert score.value is not None
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return Interval(value=score.value, low=low, high=high)


def same_noise_difference(first: Score, second: Score) -> Interval:
    """`second - first` of two rows of one seed: image by image where both were split alike and seen by the same network."""
    one, other = interval_of(first), interval_of(second)
    seen_alike = (first.n, first.weights_sha256, first.reference) == (second.n, second.weights_sha256, second.reference)
    if first.swings and second.swings and seen_alike and len(first.swings) == len(second.swings):
        return stats.paired_difference(one, other, list(zip(first.swings, second.swings, strict=True)))
    return stats.difference(one, other)
