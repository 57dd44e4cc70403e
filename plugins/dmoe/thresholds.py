"""The same with the authors' own choice beside it, in which the number of a token's experts hangs on content.

Points: `tN` computes, at the last scales, the experts whose expected norm is at most N percent below the token's largest; `t100` is
the full model. `t818-813-787` gives each of these scales its own, in thousandths. Routers are trained as for fixed numbers, and are
the same ones.
"""

from __future__ import annotations

from dataclasses import replace

from varbench import hookimpl
from varbench.errors import UserError
from varbench.experts import WidthPolicy
from varbench.experts.near_largest import NearTheLargest
from varbench.policies import Setting, Settings
from varbench.spec import ModelSpec

from . import varbench_settings as settings_of_fixed_numbers
from . import varbench_training_schedule as varbench_training_schedule
from . import varbench_width_policy as fixed_number

_NUMBER = "(0|[1-9][0-9]{0,3})"


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    fixed = settings_of_fixed_numbers(model)
    assert fixed.provenance is not None
    return replace(
        fixed,
        points=(*fixed.points, "t90", "t70", "t50"),
        default_points=fixed.points,
        point_pattern=rf"[mt]([1-9][0-9]?|100)|t{_NUMBER}(-{_NUMBER})+",
        neutral=(*fixed.neutral, "@t100"),
        provenance=replace(
            fixed.provenance,
            note=(
                f"{fixed.provenance.note}; tN is their choice by threshold, one for all scales; their scripts also name 0.818, 0.813 "
                "and 0.787 for the last three, of d16 with ReLU (t818-813-787)"
            ),
        ),
    )


@hookimpl
def varbench_width_policy(setting: Setting, model: ModelSpec) -> WidthPolicy | None:
    assert setting.point is not None
    if not setting.point.startswith("t"):
        found: WidthPolicy | None = fixed_number(setting, model)
        return found
    # A fixed number of 99 percent is only asked for its checks and its experts.
    fixed = fixed_number(replace(setting, point="m100" if setting.point == "t100" else "m99"), model)
    given = setting.parameters
    dense = int(given["dense"])
    thresholds = _thresholds(setting.point, model.scales - dense)
    if fixed is None:
        return None
    return NearTheLargest(
        model,
        experts=int(given["experts"]),
        router=int(given["router"]),
        thresholds=thresholds,
        dense=dense,
    )


def _thresholds(point: str, scales: int) -> list[float]:
    """Of the last scales."""
    numbers = [int(number) for number in point[1:].split("-")]
    if len(numbers) == 1:
        return [numbers[0] / 100] * scales
    if len(numbers) != scales or max(numbers) > 1000:
        raise UserError(
            f"{point} gives {len(numbers)} thresholds; give {scales} from 0 to 1000, one for each of the last scales"
        )
    return [number / 1000 for number in numbers]
