"""What a recipe trains, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.hookspecs.marks import hookspec

if TYPE_CHECKING:
    from varbench.policies import Setting, TrainingSchedule
    from varbench.spec import ModelSpec


@hookspec
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule | None:
    """Gives what each optimiser step trains, for the recipe of the row; None leaves the pretrained weights as they are.

    The loss of a step may be the plugin's own, which sees the network at work (`varbench.experts.PlaceSeen`): what enters and leaves
    attention, FFN and head, beside the same of a teacher.

    Parameters:
        setting: recipe and parameters of the row; weights are cached by these, never by the point.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.policies import Settings, TrainingSchedule, TrainStep

        class HalfAndHalf(TrainingSchedule):
            def at(self, stage, step, total, uniform):
                return TrainStep(point="short" if uniform(0) < 0.5 else None)

        @hookimpl
        def varbench_settings(model):
            return Settings(points=("full", "short"), recipes=("half_and_half",))

        @hookimpl
        def varbench_training_schedule(setting, model):
            return HalfAndHalf()

    Example of a loss of its own: half the layers are drawn to what the whole model's attention gives, and to its features:
        from varbench import hookimpl
        from varbench.policies import DepthPolicy, Settings, Stage, TrainingSchedule, TrainStep

        class FirstHalf(DepthPolicy):
            def __init__(self, depth):
                self.depth = depth

            def layers(self, scale, backbone):
                return range(self.depth // 2)

        class Alike(TrainingSchedule):
            def stages(self):
                return (Stage(name="alike", teacher="main"),)

            def at(self, stage, step, total, uniform):
                return TrainStep(point="half", loss="own", sees=("attention", "head"))

            def own_loss(self, seen, *, own):
                import torch.nn.functional as F

                if seen.place == "attention":
                    return F.mse_loss(seen.output_RLC.float(), seen.taught.output_RLC.float())
                codes = F.cross_entropy(seen.output_RLC.flatten(0, 1), seen.codes_RL.flatten())
                return codes + F.mse_loss(seen.hidden_RLC, seen.taught.hidden_RLC)

        @hookimpl
        def varbench_settings(model):
            return Settings(points=("half",), recipes=("alike",))

        @hookimpl
        def varbench_depth_policy(setting, model):
            return FirstHalf(model.depth)

        @hookimpl
        def varbench_training_schedule(setting, model):
            return Alike()
    """
