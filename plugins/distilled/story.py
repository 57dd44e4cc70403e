"""What the authors printed of their models."""

from __future__ import annotations

from varbench.policies import Published
from varbench.spec import ModelSpec

SCORES = {
    16: {
        "s1": {"fid": 9.94, "is": 193.6, "precision": 0.80, "recall": 0.37, "latency_s": 0.021, "speedup": 6.3},
        "s2": {"fid": 7.82, "is": 197.0, "precision": 0.80, "recall": 0.41, "latency_s": 0.036, "speedup": 3.7},
        "s2t1": {"fid": 6.54, "is": 210.8, "latency_s": 0.045},
        "s2t2": {"fid": 5.47, "is": 230.5, "latency_s": 0.062},
        "s1t5": {"fid": 5.03, "is": 242.8, "latency_s": 0.090},
    },
    20: {
        "s1": {"fid": 9.55, "is": 197.2, "precision": 0.78, "recall": 0.38},
        "s2": {"fid": 7.33, "is": 204.5, "precision": 0.82, "recall": 0.40},
    },
    24: {
        "s1": {"fid": 8.92, "is": 202.8, "precision": 0.78, "recall": 0.39},
        "s2": {"fid": 6.95, "is": 222.5, "precision": 0.83, "recall": 0.43},
    },
}
TEACHER = {16: 4.19, 20: 3.35, 24: 2.51}


def published(model: ModelSpec, *, at: int) -> tuple[Published, ...]:
    if not model.name.startswith("var-d"):
        return ()
    return tuple(
        Published(
            setting=f"@{point}",
            model=model.name,
            figures=figures,
            grade="primary",
            source="tables of arXiv 2412.17153",
            conditions=(
                f"50,000 random labels, second jump from {at} scales; their teacher has FID {TEACHER[model.depth]}, measured by "
                "them with other statistics than the usual ones. Seconds are of one image at a time"
            ),
        )
        for point, figures in SCORES.get(model.depth, {}).items()
    )
