"""The hooks. A package gives any of them, as functions of a module that it names under the entry-point group `varbench`.

Each example is a whole plugin: put it into a module, name the module in pyproject.toml, install, and it is a row:

    [project.entry-points.varbench]
    my_method = "my_package"

`setting` is what the row says of this plugin, with every parameter filled in; `model` is the geometry that it runs on.
A hook that is left out, or returns None, is the full model's behaviour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from varbench.experts import WidthPolicy
    from varbench.policies import (
        CacheStrategy,
        DecisionPolicy,
        DepthPolicy,
        Generator,
        GuidancePolicy,
        LoadedModel,
        Metric,
        Setting,
        Settings,
        StepPolicy,
        TokenPolicy,
        TrainingSchedule,
        Transformed,
    )
    from varbench.record import Record
    from varbench.record.sections import Section
    from varbench.spec import ModelSpec

PROJECT = "varbench"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


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


@hookspec
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy | None:
    """Gives which keys and values are kept, per layer, scale and group of heads, and in what type.

    Where `pick` and a form only compute on tensors, `capturable = True` has a GPU launch the row as CUDA graphs.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.policies import CacheStrategy

        class LastThree(CacheStrategy):
            def keeps(self, layer, written, reader, group):
                return written == 0 or reader - written <= 3

        @hookimpl
        def varbench_cache_strategy(setting, model):
            return LastThree()

    Example of single entries that are chosen by the attention paid to them so far, the others merged into them at last:
        from varbench import hookimpl
        from varbench.policies import CacheStrategy

        class Heaviest(CacheStrategy):
            capturable = True

            def __init__(self, model):
                self.model = model

            def budget(self, layer, scale, group):
                return 8 if self.model.starts[scale + 1] > 8 else None

            def observes(self, layer, scale, group, count):
                return range(count)

            def accumulates(self, layer, group):
                return True

            def merges(self, layer, scale, group):
                return scale == self.model.scales - 2

            def pick(self, keys_BHnc, queries_BHLc, count, *, attention_BHn, layer, scale, group):
                return attention_BHn.topk(count).indices.sort().values

        @hookimpl
        def varbench_cache_strategy(setting, model):
            return Heaviest(model)

    Example of a stored form, eight bits with a scale for each token and head:
        from varbench import hookimpl
        from varbench.policies import CacheStrategy, StoredForm

        def encode(x_BHnc):
            scale = x_BHnc.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            return (x_BHnc / scale).round().char(), scale

        def decode(parts):
            stored, scale = parts
            return stored * scale

        class EightBits(CacheStrategy):
            form = StoredForm(encode=encode, decode=decode, bits=8, extra_bytes=4)

        @hookimpl
        def varbench_cache_strategy(setting, model):
            return EightBits()
    """


@hookspec
def varbench_token_policy(setting: Setting, model: ModelSpec) -> TokenPolicy | None:
    """Gives which tokens a sub-layer computes, and how the others are filled in.

    Attention and FFN are asked about one by one, and each may be left out altogether; or the FFN computes the tokens that were
    picked for attention. What a policy wants to know at a later scale it notes, which is state in the plan. Where `pick`, `fill` and
    `note` only compute on tensors, `capturable = True` has a GPU launch the row as CUDA graphs.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.policies import TokenPolicy

        class LongestHalf(TokenPolicy):
            capturable = True

            def __init__(self, model):
                self.model = model

            def tokens(self, layer, scale, sublayer):
                last = scale == self.model.scales - 1
                return self.model.tokens[scale] // 2 if last and sublayer == "ffn" else None

            def pick(self, x_BLC, count, *, layer, scale, sublayer):
                return x_BLC.square().sum(-1).topk(count).indices.sort().values

            def fill(self, computed_BnC, places_Bn, remembered_BlC, *, length, layer, scale, sublayer):
                filled = computed_BnC.new_zeros(len(computed_BnC), length, computed_BnC.shape[-1])
                return filled.scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)

        @hookimpl
        def varbench_token_policy(setting, model):
            return LongestHalf(model)

    Example of tokens that are picked by a product, once for attention and FFN; of the scale before it only the FFN runs:
        from varbench import hookimpl
        from varbench.policies import TokenPolicy

        class LikeFewOthers(TokenPolicy):
            capturable = True

            def __init__(self, model):
                self.model, self.last = model, model.scales - 1

            def tokens(self, layer, scale, sublayer):
                if scale == self.last - 1 and sublayer == "attention":
                    return 0
                return self.model.tokens[scale] // 2 if scale == self.last else None

            def shares_places(self, layer, scale):
                return True

            def picking_flops(self, layer, scale, sublayer):
                return 2 * self.model.tokens[scale] ** 2 * self.model.width if sublayer == "attention" else 0

            def pick(self, x_BLC, count, *, layer, scale, sublayer):
                likeness_BL = (x_BLC @ x_BLC.mT).sum(-1)
                return likeness_BL.topk(count, largest=False).indices.sort().values

            def fill(self, computed_BnC, places_Bn, remembered_BlC, *, length, layer, scale, sublayer):
                others = computed_BnC.mean(1, keepdim=True).repeat(1, length, 1)
                return others.scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)

        @hookimpl
        def varbench_token_policy(setting, model):
            return LikeFewOthers(model)

    Example of tokens that are picked by what the policy has noted: those of places whose output grew over two scales:
        from varbench import hookimpl
        from varbench.policies import TokenPolicy

        class StillGrowing(TokenPolicy):
            capturable = True

            def __init__(self, model):
                self.model, self.last = model, model.scales - 1
                self.cells = model.sides[self.last - 1] ** 2

            def tokens(self, layer, scale, sublayer):
                return self.model.tokens[scale] // 2 if scale == self.last and sublayer == "ffn" else None

            def notes(self, layer, scale, sublayer):
                return self.cells if scale in (self.last - 2, self.last - 1) and sublayer == "ffn" else 0

            def resized(self, map_Rn, side):
                import math

                from torch.nn.functional import interpolate

                old = math.isqrt(map_Rn.shape[1])
                return interpolate(map_Rn.float().unflatten(1, (1, old, old)), size=(side, side), mode="area").flatten(1)

            def note(self, x_RLC, output_RLC, noted_Rn, *, layer, scale, sublayer):
                size_Rn = self.resized(output_RLC.float().norm(dim=-1), self.model.sides[self.last - 1])
                return size_Rn if noted_Rn is None else size_Rn - noted_Rn

            def pick(self, x_RLC, count, *, layer, scale, sublayer, noted_Rn=None):
                growth_RL = self.resized(noted_Rn, self.model.sides[scale])
                return growth_RL.topk(count).indices.sort().values

            def fill(self, computed_RnC, places_Rn, remembered_RlC, *, length, layer, scale, sublayer, noted_Rn=None):
                filled = computed_RnC.new_zeros(len(computed_RnC), length, computed_RnC.shape[-1])
                return filled.scatter(1, places_Rn.unsqueeze(-1).expand_as(computed_RnC), computed_RnC)

        @hookimpl
        def varbench_token_policy(setting, model):
            return StillGrowing(model)
    """


@hookspec
def varbench_width_policy(setting: Setting, model: ModelSpec) -> WidthPolicy | None:
    """Gives how many experts of equal size, into which hidden units are split, an FFN computes, and which for each token.

    It is asked for the main model's layers. It may keep numbers of its own beside the weights, which a recipe can train.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry that it runs on.

    Example:
        from varbench import hookimpl
        from varbench.experts import OwnParameters, WidthPolicy

        def means(weights, seed):
            import torch

            rows = [rows for name, rows in weights.items() if name.endswith("ffn.fc1.weight")]
            return {"table": torch.stack([one.unflatten(0, (8, -1)).mean(dim=1) for one in rows])}

        class HalfAtTheEnd(WidthPolicy):
            experts = 8

            def __init__(self, model):
                self.model = model
                self.own = OwnParameters(shapes={"table": (model.depth, 8, model.width)}, initial=means)
                self.routing_flops = 2 * model.width * 8

            def count(self, layer, scale):
                return 4 if scale == self.model.scales - 1 else None

            def route(self, hidden_RLC, count, *, layer, scale, own):
                return (hidden_RLC @ own["table"][layer].float().T).topk(count).indices

        @hookimpl
        def varbench_width_policy(setting, model):
            return HalfAtTheEnd(model)
    """


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


@hookspec
def varbench_transform_model(setting: Setting, model: ModelSpec) -> Transformed | None:
    """Gives how modules are replaced once weights are loaded, and what that does to work and bytes; those of a row stack.

    It is asked for each backbone of a row, and applied to a copy: rows without it run on the weights as they were.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry of the backbone whose modules are replaced.

    Example:
        from varbench import hookimpl
        from varbench.policies import PARTS, PartChange, Transformed

        def stored_in_half(transformer):
            import torch

            for module in transformer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(torch.bfloat16)
            return transformer

        @hookimpl
        def varbench_transform_model(setting, model):
            half = PartChange(weight_type="bfloat16", bias_type="bfloat16")
            return Transformed(apply=stored_in_half, changes=dict.fromkeys(PARTS, half))
    """


@hookspec
def varbench_generator(setting: Setting, model: ModelSpec) -> Generator | None:
    """Gives a generator that replaces the whole loop, for models of another family; it is alone in its row.

    A `TrainedGenerator` gets the preset's tokenizer, says what its network learns of images, and is trained by `varbench train`
    and by a run, as recipes are, with weights that are kept and a training that can be interrupted. A `TaughtGenerator` gets the
    full model too, whose tensors it may begin from, and learns from examples that this model makes: once, with weights of the
    same hash, and kept a part at a time.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry whose image size and classes the row is compared under.

    Example:
        from varbench import hookimpl
        from varbench.policies import Generator, Work

        class Grey(Generator):
            def __init__(self, side):
                self.side = side

            def load(self, *, device, dtype, seed):
                self.device = device

            def generate(self, labels, *, seed, first_image):
                import torch

                return torch.full((len(labels), 3, self.side, self.side), 0.5, device=self.device)

            def work(self, batch):
                return Work(flops=0.0, steps=1)

        @hookimpl
        def varbench_generator(setting, model):
            return Grey(model.image_side)

    Example of a generator that learns from what the full model makes, in the place of images:
        from varbench import hookimpl
        from varbench.policies import TaughtGenerator, Work

        class MeansOfClasses(TaughtGenerator):
            training, making = {"of": "vectors"}, {"cfg": 1.5}

            def __init__(self, model):
                self.model, self.numbers = model, model.length * model.tokenizer.code_dim

            def meet(self, teacher, *, tokenizer):
                self.teacher, self.tokenizer = teacher, tokenizer

            def made(self, labels_B, numbers):
                def likeliest(logits_BlV, scale):
                    return logits_BlV.argmax(-1)

                return self.teacher.draw(labels_B, likeliest, cfg=1.5, until=self.model.scales)

            def network_for(self, tokenizer, seen, *, seed):
                import torch

                return torch.nn.Embedding(self.model.classes, self.numbers)

            def losses(self, network, examples_Bn, labels_B):
                wanted = self.tokenizer.codebook[examples_Bn].flatten(1)
                return (network(labels_B) - wanted).square().mean(1)

            def take(self, *, tokenizer, weights):
                self.tokenizer, self.weights = tokenizer, weights

            def load(self, *, device, dtype, seed):
                import torch

                stream = torch.Generator().manual_seed(seed)
                drawn = torch.randn(self.model.classes, self.numbers, generator=stream)
                self.table = (self.weights["weight"] if self.weights else drawn).float().to(device)
                self.teacher = None

            def generate(self, labels, *, seed, first_image):
                import torch

                vectors = self.table[torch.tensor(labels, device=self.table.device)]
                return self.tokenizer.decode_map(self.tokenizer.map_of(vectors.view(len(labels), self.model.length, -1)))

            def work(self, batch):
                return Work(flops=0.0, steps=1)

        @hookimpl
        def varbench_generator(setting, model):
            return MeansOfClasses(model)
    """


@hookspec
def varbench_calibrate(setting: Setting, pipe: LoadedModel) -> dict[str, Any] | None:
    """Runs an offline pass over the loaded model, and returns what it found as JSON, which is hashed and kept.

    `varbench calibrate` and `varbench.engine.calibration.calibrate(row, pipe)` call it. What stands under `parameters` becomes
    the row's own; a row that was not calibrated runs with the defaults.

    Parameters:
        setting: recipe, point and parameters of the row.
        pipe: the pipeline with its weights, on its device.

    Example:
        from varbench import hookimpl

        @hookimpl
        def varbench_calibrate(setting, pipe):
            tokens = pipe.generate([0, 1], seed=7).tokens
            used = int(tokens.unique().numel())
            return {"codes_used": used, "parameters": {"first": min(used, 3)}}
    """


@hookspec
def varbench_metrics() -> Sequence[Metric] | None:
    """Gives further columns: means of a number that each of a row's images has, with their interval over images.

    Images come a batch at a time, in a process of its own. A metric that fails costs its own column.

    Example:
        from varbench import hookimpl
        from varbench.policies import Metric

        def brightness(images, labels):
            return images.float().mean(dim=(1, 2, 3)) / 255

        @hookimpl
        def varbench_metrics():
            return [Metric(name="brightness", better="higher", compute=brightness)]
    """


@hookspec
def varbench_report_sections(plugin: str, records: Sequence[Record]) -> Sequence[Section] | None:
    """Gives further panels of the report, made from its records.

    Parameters:
        plugin: the name that the plugin goes by here, with which its rows' names begin.
        records: all rows that the report shows, as copies: the hook runs in a process of its own, with a time limit.

    Example:
        from varbench import hookimpl
        from varbench.record.sections import Section, Table

        @hookimpl
        def varbench_report_sections(plugin, records):
            rows = [(record.row.row, record.status) for record in records if record.row.row.startswith(plugin)]
            return [Section(title="How our rows ended", parts=[Table(columns=("row", "status"), rows=rows)])]
    """
