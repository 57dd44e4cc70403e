"""The same behind a gate, with as many experts for a token as are near its largest."""

from __future__ import annotations

from varbench.experts.near_largest import NearTheLargest

from .gated import GatedExperts


class GatedByThreshold(NearTheLargest, GatedExperts):
    """Some tokens, as behind the gate, by experts near the largest."""
