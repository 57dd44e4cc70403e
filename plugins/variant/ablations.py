"""What each choice of the method buys: the published choices, one of them changed at a time, trained alike."""

from __future__ import annotations

from varbench import supernet
from varbench.policies import Study
from varbench.spec import ModelSpec

TITLE = "What each of VARiant's choices buys"


def changes(model: ModelSpec) -> dict[str, str]:
    """What is changed from what is published, in words, and as it is written behind a point."""
    depths = [point for point in supernet.points(model) if point in supernet.default_points(model)][1:]
    bridges = [number for number in range(model.scales) if number != supernet.default_bridge(model)]
    return {
        "": "as published",
        **{f":bridge={number}": _bridge(number) for number in bridges},
        ":spread=prefix": "the first layers in the place of equidistant ones",
        ":nested=true": "each smaller set of layers from within the larger",
        **{f":draw={depth}": f"subnet steps train {depth} alone" for depth in depths},
        ":targets=full": "subnets learn what the full model says",
        ":phases=reversed": "subnets first, the full model last",
    }


def study(model: ModelSpec) -> Study:
    return Study(
        title=TITLE,
        settings=tuple(f"@progressive/{point}{how}" for how in changes(model) for point in supernet.points(model)),
        caption="One choice is changed at a time, and trained for as many steps on the same data in the same order with the same "
        "noise. Another bridge also changes what a subnet computes; learning from the full model costs its pass beside each step.",
    )


def _bridge(number: int) -> str:
    return "no bridge: subnets at every scale" if number == 0 else f"a bridge of {number}"
