"""The same with the authors' own choice beside it, in which the number of a token's experts hangs on content.

Points: `tN` computes, at the last scales, the experts whose expected norm is at most N percent below the token's largest; `t100` is
the full model. Routers are trained as for fixed numbers, and are the same ones.
"""

from __future__ import annotations

from dataclasses import replace

from varbench import hookimpl
from varbench.experts import WidthPolicy
from varbench.experts.near_largest import NearTheLargest
from varbench.policies import Setting, Settings
from varbench.spec import ModelSpec

from . import varbench_settings as settings_of_fixed_numbers
from . import varbench_training_schedule as varbench_training_schedule
from . import varbench_width_policy as fixed_number


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    fixed = settings_of_fixed_numbers(model)
    assert fixed.provenance is not None
    return replace(
        fixed,
        points=(*fixed.points, "t90", "t70", "t50"),
        default_points=fixed.points,
        point_pattern=r"[mt]([1-9][0-9]?|100)",
        neutral=(*fixed.neutral, "@t100"),
        provenance=replace(
            fixed.provenance,
            note=f"{fixed.provenance.note}; tN is their choice by threshold, one for all scales: theirs, by scale, are not said",
        ),
    )


@hookimpl
def varbench_width_policy(setting: Setting, model: ModelSpec) -> WidthPolicy | None:
    assert setting.point is not None
    percent = int(setting.point[1:])
    # A fixed number of 99 percent is only asked for its checks and its experts.
    alike = replace(setting, point="m100" if percent == 100 else "m99") if setting.point.startswith("t") else setting
    fixed: WidthPolicy | None = fixed_number(alike, model)
    if fixed is None or alike is setting:
        return fixed
    given = setting.parameters
    return NearTheLargest(
        model,
        experts=int(given["experts"]),
        router=int(given["router"]),
        threshold=percent / 100,
        dense=int(given["dense"]),
    )
