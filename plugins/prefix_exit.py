"""Prefix exit: the first layers alone run, at every scale or from some scale on (as FreqExit has it, without its training).

Points: `eN` runs the first N layers; N of the whole depth is the full model.
"""

from __future__ import annotations

from collections.abc import Sequence

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import MAIN, DepthPolicy, Parameter, Provenance, Setting, Settings
from varbench.spec import ModelSpec

SHARES = (8, 6, 5)
"""Tenths of the depth that the named points run: the published 16, 12 and 10 of 20 layers."""


class FirstLayers(DepthPolicy):
    def __init__(self, model: ModelSpec, *, count: int, whole: int) -> None:
        self._depth, self._count, self._whole = model.depth, count, whole

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        if backbone != MAIN:
            raise UserError(
                f"the row also runs backbone {backbone!r}, and this depth is chosen for the main model alone"
            )
        return range(self._depth if scale < self._whole else self._count)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    counts = dict.fromkeys(model.depth * share // 10 for share in SHARES if model.depth * share >= 10)
    return Settings(
        points=tuple(f"e{count}" for count in counts),
        point_pattern=r"e[0-9]+",
        parameters={"whole": Parameter(default=0, help="the first N scales run all layers")},
        neutral=(f"@e{model.depth}",),
        summary="the first layers alone, at every scale",
        provenance=Provenance(
            kind="from paper",
            note=(
                "a fixed number of layers, on the model as it is: the published figures are after training that is not "
                "done here; the head is applied to an inner layer's output unchanged"
            ),
        ),
    )


@hookimpl
def varbench_depth_policy(setting: Setting, model: ModelSpec) -> DepthPolicy:
    assert setting.point is not None
    count, whole = int(setting.point[1:]), int(setting.parameters["whole"])
    if not 1 <= count <= model.depth:
        raise UserError(
            f"{setting.point} is out of range: {model.name} has {model.depth} layers, so give e1 to e{model.depth}"
        )
    if not 0 <= whole <= model.scales:
        raise UserError(f"whole is {whole}; {model.name} has {model.scales} scales, so give 0 to {model.scales}")
    return FirstLayers(model, count=count, whole=whole)
