"""The transformer: weights under the official names, and the pieces of a block that the engine and the trainer call.

Arithmetic, in every precision: the residual stream, LayerNorm and the l2 normalisation of q and k are float32; matrix
products run in the compute type (the official code under autocast does the same). Parameters may be float32 masters
(training) or already stored in the compute type (generation): `to` is then free.

Letters: B rows (images x guidance branches), L tokens, C width, H heads, c head size, D code_dim, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varbench.model.fused import normed, unit_queries_and_keys
from varbench.model.weighted import product
from varbench.spec import ModelSpec


def linear(
    x: Tensor, layer: nn.Module, dtype: torch.dtype, *, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """A linear layer in the compute type, and GELU (the tanh form) after it where asked for; `bias` is one that the layer
    does not hold itself. What a transform has put in a layer's place is called, with activations in that type."""
    if type(layer) is not nn.Linear:
        made: Tensor = layer(x.to(dtype)).to(dtype)
        made = made if bias is None else made + bias.to(dtype)
        return F.gelu(made, approximate="tanh") if gelu else made
    own = bias if layer.bias is None else layer.bias
    return product(x.to(dtype), layer.weight.to(dtype), None if own is None else own.to(dtype), gelu=gelu)


def embedding(rows: int, width: int) -> nn.Embedding:
    """As torch makes it. On the meta device torch would import its compiler, half a second, to draw values of no use."""
    weight = torch.empty(rows, width)
    return nn.Embedding(rows, width, _weight=weight if weight.is_meta else weight.normal_())


class Conditioner(nn.ModuleList):
    """SiLU and a linear layer of the class vector; a list only so that its weights are called `1.weight`."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__((nn.SiLU(), nn.Linear(width, outputs)))

    @property
    def weight(self) -> Tensor:
        return self.get_parameter("1.weight")

    def forward(self, cond_BC: Tensor, dtype: torch.dtype) -> Tensor:
        return linear(F.silu(cond_BC.float()), self[1], dtype)


class Attention(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.head_size, self.l2 = spec.heads, spec.width // spec.heads, spec.l2_attention
        self.mat_qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(spec.width))
        self.v_bias = nn.Parameter(torch.zeros(spec.width))
        self.proj = nn.Linear(spec.width, spec.width)
        if self.l2:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, spec.heads, 1, 1), math.log(4)))
            self.softmax_scale = 1.0
        else:
            self.softmax_scale = 0.25 / math.sqrt(spec.head_dim)

    def bias(self) -> Tensor:
        """Of queries, keys and values together; keys have none."""
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def qkv(
        self,
        x_BLC: Tensor,
        dtype: torch.dtype,
        *,
        keys: torch.dtype = torch.float32,
        bias: Tensor | None = None,
        into: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q and v in the compute type; k, where q and k are normalised, in type `keys`. `bias` is `self.bias()`, for who has it;
        where keys and values have a place, they are put into it."""
        batch, length, width = x_BLC.shape
        qkv = linear(x_BLC, self.mat_qkv, dtype, bias=self.bias() if bias is None else bias)
        parts_BL3Hc = qkv.view(batch, length, 3, self.heads, width // self.heads)
        if not self.l2:
            q, k, v = parts_BL3Hc.transpose(1, 3).unbind(2)
            return q, k, v
        q, k = unit_queries_and_keys(parts_BL3Hc, self.scale_mul_1H11, dtype, keys, into=into)
        return q, k, parts_BL3Hc[:, :, 2].transpose(1, 2) if into is None else into[1]

    def out(self, mixed_BHLc: Tensor, dtype: torch.dtype) -> Tensor:
        batch, _, length, _ = mixed_BHLc.shape
        return linear(mixed_BHLc.transpose(1, 2).reshape(batch, length, -1), self.proj, dtype)


class FeedForward(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.hidden)
        self.fc2 = nn.Linear(spec.hidden, spec.width)

    def forward(self, x_BLC: Tensor, dtype: torch.dtype, seen: Callable[[Tensor], None] | None = None) -> Tensor:
        """`seen` is shown the hidden numbers."""
        hidden_BLU = self.into(x_BLC, dtype)
        if seen is not None:
            seen(hidden_BLU)
        return self.out(hidden_BLU, dtype)

    def into(self, x_BLC: Tensor, dtype: torch.dtype) -> Tensor:
        return linear(x_BLC, self.fc1, dtype, gelu=True)

    def out(self, hidden_BLU: Tensor, dtype: torch.dtype) -> Tensor:
        return linear(hidden_BLU, self.fc2, dtype)


class Layer(nn.Module):
    attn: Attention
    ffn: FeedForward

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.attn = Attention(spec)
        self.ffn = FeedForward(spec)
        if spec.shared_adaln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, spec.width))
        else:
            self.ada_lin = Conditioner(spec.width, 6 * spec.width)

    def six(self, cond_BC: Tensor, shared_B16C: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Gates, scales and shifts of attention and FFN, (B, 1, 6, C)."""
        if shared_B16C is None:
            made: Tensor = self.ada_lin(cond_BC, dtype).view(cond_BC.shape[0], 1, 6, -1)
            return made
        return self.ada_gss + shared_B16C

    def modulation(self, cond_BC: Tensor, shared_B16C: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2, each (B, 1, C) in the compute type."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.six(cond_BC, shared_B16C, dtype).unbind(2)
        return gamma1, gamma2, scale1 + 1, scale2 + 1, shift1, shift2


class HeadNorm(nn.Module):
    ada_lin: Conditioner

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.ada_lin = Conditioner(spec.width, 2 * spec.width)

    def modulation(self, cond_BC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale, shift = self.ada_lin(cond_BC, dtype).view(cond_BC.shape[0], 1, 2, -1).unbind(2)
        return scale + 1, shift


class OwnNumbers(nn.Module):
    """What a method keeps beside the weights: what is trained as parameters, whole numbers as buffers. Their names are
    `plugin/name`, which no member of a module is called."""

    def __init__(self, plugin: str = "", tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.plugin = plugin
        place = plugin.replace(".", ":")  # torch takes no dots
        for name, tensor in (tensors or {}).items():
            if tensor.is_floating_point():
                self.register_parameter(f"{place}/{name}", nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(f"{place}/{name}", tensor)

    def tensors(self) -> dict[str, Tensor]:
        held = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name.rpartition("/")[2]: tensor for name, tensor in held.items()}


class Transformer(nn.Module):
    """All weights of one backbone. Which blocks run on which tokens is the plan's business, not this module's."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        self.pos_start = nn.Parameter(torch.zeros(1, spec.tokens[0], width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, spec.length, width))
        self.word_embed = nn.Linear(spec.tokenizer.code_dim, width)
        self.class_emb = embedding(spec.classes + 1, width)
        self.lvl_embed = embedding(spec.scales, width)
        if spec.shared_adaln:
            self.shared_ada_lin = Conditioner(width, 6 * width)
        self.blocks = nn.ModuleList(Layer(spec) for _ in range(spec.depth))
        self.head_nm = HeadNorm(spec)
        self._scale_of_L: Tensor | None = None
        self.head = nn.Linear(width, spec.tokenizer.vocabulary)
        self.own = OwnNumbers()
        """Of a method, where a row or a training has any."""

    def block(self, layer: int) -> Layer:
        found = self.blocks[layer]
        assert isinstance(found, Layer)
        return found

    def condition(self, labels_B: Tensor) -> Tensor:
        """Class vectors (B, C); label `classes` is "no class"."""
        vectors_BC: Tensor = self.class_emb(labels_B)
        return vectors_BC

    def shared_modulation(self, cond_BC: Tensor, dtype: torch.dtype) -> Tensor | None:
        if not self.spec.shared_adaln:
            return None
        six_BC: Tensor = self.shared_ada_lin(cond_BC, dtype)
        return six_BC.view(cond_BC.shape[0], 1, 6, -1)

    def first_tokens(self, cond_BC: Tensor) -> Tensor:
        """The input of the first scale, (B, l, C)."""
        return cond_BC.unsqueeze(1) + self.pos_start + self.places(0, self.spec.tokens[0])

    def later_tokens(self, features_BlD: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        """The input made from features of a later scale (or several, one after another), from token `start` on."""
        return linear(features_BlD, self.word_embed, dtype) + self.places(start, start + features_BlD.shape[1])

    def places(self, start: int, end: int) -> Tensor:
        """Level plus position embedding of a range of tokens."""
        if self._scale_of_L is None or self._scale_of_L.device != self.pos_1LC.device:
            counts = torch.tensor(self.spec.tokens)
            self._scale_of_L = torch.repeat_interleave(torch.arange(len(counts)), counts).to(self.pos_1LC.device)
        level_lC: Tensor = self.lvl_embed(self._scale_of_L[start:end])
        return level_lC + self.pos_1LC[:, start:end]

    def logits(self, x_BLC: Tensor, modulation: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        scale, shift = modulation
        return linear(normed(x_BLC) * scale + shift, self.head, dtype).float()

    def cast_(self, dtype: torch.dtype) -> Transformer:
        """Store what matrix products read in the compute type; embeddings and the attention scale stay float32."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self


def initialise_(model: Transformer, generator: torch.Generator) -> Transformer:
    """Sets every parameter to its official initial value: normal, small head, near-zero gammas, depth-scaled outputs. The
    model may come uninitialised. The official code cuts off at 2, which is some forty deviations away, and takes ten times as
    long for it."""
    spec = model.spec
    std = math.sqrt(1 / spec.width / 3)

    def draw(tensor: Tensor) -> None:
        tensor.normal_(std=std, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                draw(module.weight)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, Attention):
                module.q_bias.zero_()
                module.v_bias.zero_()
                if module.l2:
                    module.scale_mul_1H11.fill_(math.log(4))
        draw(model.pos_start)
        draw(model.pos_1LC)
        model.head.weight.mul_(0.02)
        model.head_nm.ada_lin.weight.mul_(0.5)
        rows: Tensor
        for block in map(model.block, range(spec.depth)):
            block.attn.proj.weight.div_(math.sqrt(2 * spec.depth))
            block.ffn.fc2.weight.div_(math.sqrt(2 * spec.depth))
            if spec.shared_adaln:
                block.ada_gss.normal_(std=spec.width**-0.5, generator=generator)
                rows, axis = block.ada_gss, 2
            else:
                rows, axis = block.ada_lin.weight.view(6, spec.width, spec.width), 0
            rows.narrow(axis, 0, 2).mul_(1e-5)
            rows.narrow(axis, 2, 4).mul_(0.5)
    return model
