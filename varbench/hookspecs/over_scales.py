"""Which scales run, with which branches of guidance, and how an image goes on from one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.hookspecs.marks import hookspec

if TYPE_CHECKING:
    from varbench.policies import DecisionPolicy, GuidancePolicy, Setting, StepPolicy
    from varbench.spec import ModelSpec


@hookspec
def varbench_step_policy(setting: Setting, model: ModelSpec) -> StepPolicy | None:
    """Gives which scales run, are skipped, encoded together or encoded again, and on which backbone.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.policies import StepPolicy, StepSpec

        class WithoutTheSecondLast(StepPolicy):
            def __init__(self, scales):
                self.scales = scales

            def steps(self):
                return [StepSpec(scales=(k,)) for k in range(self.scales) if k != self.scales - 2]

        @hookimpl
        def varbench_step_policy(setting, model):
            return WithoutTheSecondLast(model.scales)

    Example of a draft by half the layers, which all layers encode again together with the scale after it:
        from varbench import hookimpl
        from varbench.policies import DepthPolicy, StepPolicy, StepSpec

        class EncodesTheDraftAgain(StepPolicy):
            def __init__(self, scales, drafted):
                self.scales, self.drafted = scales, drafted

            def steps(self):
                draft = [StepSpec(scales=(k,)) for k in range(self.drafted)]
                again = StepSpec(scales=tuple(range(self.drafted + 1)))
                return [*draft, again, *(StepSpec(scales=(k,)) for k in range(self.drafted + 1, self.scales))]

        class HalfDrafts(DepthPolicy):
            def __init__(self, depth, drafted):
                self.depth, self.drafted = depth, drafted

            def layers(self, scale, backbone):
                return range(self.depth // 2) if scale < self.drafted else range(self.depth)

        @hookimpl
        def varbench_step_policy(setting, model):
            return EncodesTheDraftAgain(model.scales, model.scales // 2)

        @hookimpl
        def varbench_depth_policy(setting, model):
            return HalfDrafts(model.depth, model.scales // 2)
    """


@hookspec
def varbench_guidance_policy(setting: Setting, model: ModelSpec) -> GuidancePolicy | None:
    """Gives which guidance branches run at each scale, and how strong guidance is there.

    With `shares`, both go on with the attention that the labelled one computes; the unlabelled one's keys and values are gone.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.policies import GuidancePolicy

        class EvenThenOff(GuidancePolicy):
            def __init__(self, scales):
                self.scales = scales

            def branches(self, scale):
                return "both" if scale < self.scales - 1 else "labelled"

            def strength(self, scale):
                return 0.5

            def shares(self, scale):
                return scale >= self.scales // 2

        @hookimpl
        def varbench_guidance_policy(setting, model):
            return EvenThenOff(model.scales)
    """


@hookspec
def varbench_decision_policy(setting: Setting, model: ModelSpec) -> DecisionPolicy | None:
    """Gives the ways in which generation may go on, and after which scale one is chosen by content for each image.

    All ways are compiled: the plan has the least and the most, and what really ran is in the trace. A batch whose images go
    different ways is split.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.policies import DecisionPolicy, Way

        class EndsWhenSure(DecisionPolicy):
            def __init__(self, model):
                self.last = model.scales - 1

            def after(self):
                return self.last - 2

            def ways(self):
                return Way(), Way(labelled=self.last), Way(ends=self.last)

            def decide(self, seen):
                likeliest_Bl = seen.logits_BlV.softmax(dim=-1).amax(dim=-1)
                sure_B = likeliest_Bl.mean(dim=-1)
                return (sure_B > 0.1).int() + (sure_B > 0.2).int()

        @hookimpl
        def varbench_decision_policy(setting, model):
            return EndsWhenSure(model)
    """
