"""What the paper and notes of it print, and two questions: at which scales depth matters, and what each of its choices buys."""

from __future__ import annotations

import itertools

from varbench import supernet
from varbench.policies import Paper, Published, Study
from varbench.spec import ModelSpec

ABSTRACT, NOTE = "abstract of arXiv 2511.16546", "note on arXiv 2511.16546"
L20 = "one NVIDIA L20, batch 64, without the decoder"
PRINTED_ON, UNREDUCED = "var-d30", 1.95
CHOICES = "What each of VARiant's choices buys"
ZONES = {"1-3": 12.91, "4-6": 8.50, "7-10": 5.42}
"""FID of the untrained model with 16 of its 30 layers on these scales."""

PUBLISHED = (
    Published(setting="@d16", model=PRINTED_ON, figures={"fid": 2.05}, grade="primary", source=ABSTRACT),
    Published(
        setting="@d16",
        model=PRINTED_ON,
        figures={"is": 314, "speedup": 1.7, "latency_s": 2.12, "memory_mb": 28644, "kv_mb": 16092},
        grade="secondary",
        source=NOTE,
        conditions=f"{L20}; 6 + 4 steps",
    ),
    Published(setting="@d8", model=PRINTED_ON, figures={"fid": 2.12}, grade="primary", source=ABSTRACT),
    Published(
        setting="@d8",
        model=PRINTED_ON,
        figures={"fid": 2.15, "speedup": 2.6, "kv_saving": 0.65},
        grade="secondary",
        source=NOTE,
        conditions=L20,
    ),
    Published(setting="@d4", model=PRINTED_ON, figures={"fid": 2.30, "kv_mb": 7200}, grade="secondary", source=NOTE),
    Published(
        setting="@d2",
        model=PRINTED_ON,
        figures={"fid": 2.97, "speedup": 3.5, "kv_saving": 0.8},
        grade="primary",
        source=ABSTRACT,
    ),
    Published(setting="@d2", model=PRINTED_ON, figures={"fid": 2.67}, grade="secondary", source=NOTE),
    *(
        Published(
            setting=f"@untrained/d16:zone={zone}",
            model=PRINTED_ON,
            figures={"fid": fid},
            grade="secondary",
            source=NOTE,
        )
        for zone, fid in ZONES.items()
    ),
)

PAPER = Paper(
    title="The table of arXiv 2511.16546",
    rows=("full_var", "dit@s50", "smaller@d24", "smaller@d20", "llamagen@XXL384", "code@n9", "code@n8", "code@n7", "code@n6", "variant@d16",
          "variant@d8", "variant@d4", "variant@d2", "fixed_ratio@p01/full", "fixed_ratio@p01/d16", "fixed_ratio@p10/full",
          "fixed_ratio@p10/d16"),
    model=PRINTED_ON, batch=64, dtype="float16", hardware="L20",
)  # fmt: skip


def where_depth_matters(model: ModelSpec) -> Study:
    """The untrained model at its deepest subnet on early, middle or late scales: 1-3, 4-6 and 7-10 of ten, as published, and
    the same shares of any other number."""
    ends = (0, round(0.3 * model.scales), round(0.6 * model.scales), model.scales)
    zones = [f"{before + 1}-{end}" for before, end in itertools.pairwise(ends) if end > before]
    return Study(
        title="Where depth matters",
        settings=tuple(f"@untrained/{point}:zone={zone}" for point in supernet.points(model)[1:2] for zone in zones),
        caption="The full model without any further training, with fewer layers on one zone of scales only."
        + ("" if model.name == PRINTED_ON else _elsewhere()),
    )


def _elsewhere() -> str:
    """Beside rows of the model that they were printed for, figures stand by themselves."""
    printed = ", ".join(f"{fid:.2f} on scales {zone}" for zone, fid in ZONES.items())
    return f" Published for {PRINTED_ON} (secondary; 16 of 30 layers): FID {UNREDUCED:.2f} unreduced, {printed}."


def choices(model: ModelSpec) -> Study:
    return Study(
        title=CHOICES,
        settings=tuple(
            f"@progressive/{point}{how}" for how in ("", *_changes(model)) for point in supernet.points(model)
        ),
        caption="One choice is changed at a time, and trained for as many steps on the same data in the same order with the same "
        "noise. Another bridge also changes what a subnet computes; learning from the full model costs its pass beside each step.",
    )


def _changes(model: ModelSpec) -> list[str]:
    bridges = [number for number in range(model.scales) if number != supernet.default_bridge(model)]
    depths = supernet.default_points(model)[1:]
    said = [*(f"bridge={number}" for number in bridges), *(f"draw={depth}" for depth in depths)]
    return [f":{how}" for how in (*said, "spread=prefix", "nested=true", "targets=full", "phases=reversed")]
