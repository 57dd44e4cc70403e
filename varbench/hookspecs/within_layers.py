"""What a layer keeps and computes: keys and values, tokens, parts of the FFN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.hookspecs.marks import hookspec

if TYPE_CHECKING:
    from varbench.experts import WidthPolicy
    from varbench.policies import CacheStrategy, Setting, TokenPolicy
    from varbench.spec import ModelSpec


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

            def merging_weights(self, attention_BHn, *, layer, scale, group):
                return attention_BHn + 1e-6

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
