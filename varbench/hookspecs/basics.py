"""What a plugin has, and the first that a method may change: which layers run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.hookspecs.marks import hookspec

if TYPE_CHECKING:
    from varbench.policies import DepthPolicy, Setting, Settings
    from varbench.spec import ModelSpec


@hookspec
def varbench_settings(model: ModelSpec) -> Settings | None:
    """Says which recipes, points and parameters the plugin has on a model, and which of them are measured by default.

    Parameters:
        model: the geometry; points may depend on it, as depths below the model's own do.

    Example:
        from varbench import hookimpl
        from varbench.policies import Parameter, Settings

        @hookimpl
        def varbench_settings(model):
            return Settings(
                points=("half", "third"),
                parameters={"first": Parameter(default=1, help="scales that run whole")},
                summary="runs every second or third layer",
            )
    """


@hookspec
def varbench_depth_policy(setting: Setting, model: ModelSpec) -> DepthPolicy | None:
    """Gives which layers run at each scale, in order.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.policies import DepthPolicy

        class EverySecond(DepthPolicy):
            def __init__(self, depth):
                self.depth = depth

            def layers(self, scale, backbone):
                return range(0, self.depth, 2) if scale >= 3 else range(self.depth)

        @hookimpl
        def varbench_depth_policy(setting, model):
            return EverySecond(model.depth)
    """
