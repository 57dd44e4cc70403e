"""The student: the teacher's layers, seeing every token's own code or noise. Names are those of the official checkpoints.

Letters: B images, L tokens, T places (a class token, then tokens), C width, H heads, c head size, V codes, D numbers of a code's
vector, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varbench.spec import ModelSpec

EPS = 1e-6
MAX_LOG_SCALE = math.log(100)
STD = 0.02
"""Of the first values of what the teacher has not."""


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """In the type of its weights: 16 bits, where it was loaded so."""
    made: Tensor = layer(x.to(layer.weight.dtype))
    return made


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), (x.shape[-1],), eps=EPS)


class Conditioner(nn.Sequential):
    """Vectors made of the class vector, (B, 1, outputs, C)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, outputs * width))
        self.outputs = outputs

    def forward(self, cond_BC: Tensor) -> Tensor:
        layer = self[1]
        assert isinstance(layer, nn.Linear)
        made_BC = linear(layer, F.silu(cond_BC.float()))
        return made_BC.view(len(cond_BC), 1, self.outputs, -1)


class Attention(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.l2 = spec.heads, spec.l2_attention
        self.mat_qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(spec.width))
        self.v_bias = nn.Parameter(torch.zeros(spec.width))
        self.proj = nn.Linear(spec.width, spec.width)
        self.softmax_scale = 1.0 if self.l2 else 0.25 / math.sqrt(spec.head_dim)
        if self.l2:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, spec.heads, 1, 1), math.log(4)))

    def forward(self, x_BTC: Tensor, mask_TT: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = linear(self.mat_qkv, x_BTC)
        q, k, v = (qkv + bias.to(qkv.dtype)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        if self.l2:
            scale_1H11 = self.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()
            q = (F.normalize(q.float(), dim=-1) * scale_1H11).to(v.dtype)
            k = F.normalize(k.float(), dim=-1).to(v.dtype)
        if self.training and q.device.type == "cpu":  # where the fused kernel's backward takes twice as long
            scores = (q @ k.transpose(-2, -1) * self.softmax_scale).masked_fill(~mask_TT, -torch.inf)
            mixed = scores.softmax(-1).to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TT, scale=self.softmax_scale)
        return linear(self.proj, mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.hidden)
        self.fc2 = nn.Linear(spec.hidden, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, F.gelu(linear(self.fc1, x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.attn = Attention(spec)
        self.ffn = FeedForward(spec)
        self.ada_lin = Conditioner(spec.width, 6)

    def forward(self, x_BTC: Tensor, cond_BC: Tensor, kind_BTC: Tensor, mask_TT: Tensor) -> Tensor:
        """`kind` says of each token whether it is data or noise, and comes in between attention and FFN."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.ada_lin(cond_BC).unbind(2)
        x_BTC = x_BTC + self.attn(normed(x_BTC) * (scale1 + 1) + shift1, mask_TT) * gamma1 + kind_BTC
        added: Tensor = self.ffn(normed(x_BTC) * (scale2 + 1) + shift2) * gamma2
        return x_BTC + added


class HeadNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = Conditioner(width, 2)

    def forward(self, x_BTC: Tensor, cond_BC: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond_BC).unbind(2)
        modulated: Tensor = normed(x_BTC) * (scale + 1) + shift
        return modulated


class VectorHead(nn.Module):
    """Of a token's last state, a vector where the other head gives logits."""

    def __init__(self, width: int, code_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, code_dim)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))

    def forward(self, x_BTC: Tensor, cond_BC: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table[None] + cond_BC[:, None]).float().split(1, dim=1)
        return linear(self.linear, normed(x_BTC) * (scale + 1) + shift).float()


class Student(nn.Module):
    """Its levels are a class token's and the teacher's scales: a token sees itself and the levels before its own."""

    level_T: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width, code_dim = spec.width, spec.tokenizer.code_dim
        self.spec = spec
        self.word_embed = nn.Linear(code_dim, width)
        self.class_emb = nn.Embedding(spec.classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, spec.length + 1, width))
        self.lvl_embed = nn.Embedding(spec.scales + 1, width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, spec.tokenizer.vocabulary)
        self.n_d_embed = nn.Embedding(2, width)
        """Noise, then data."""
        self.layerwise_n_d_embed = nn.ModuleList(nn.Linear(width, width) for _ in range(spec.depth + 1))
        self.final_layer_conti = VectorHead(width, code_dim)
        counts = torch.tensor((1, *spec.tokens), device="cpu")
        self.register_buffer("level_T", torch.repeat_interleave(counts), persistent=False)

    def states(self, labels_B: Tensor, vectors_BnD: Tensor, given_B: Tensor, *, everywhere: bool = False) -> Tensor:
        """Last states (B, n, C) of the first n tokens, of which the first `given` of each image are data and the others noise.

        What says data or noise goes through a layer's linear as the two rows that it is; `everywhere` token by token, as in
        the authors' code.
        """
        cond_BC, places = self.class_emb(labels_B), 1 + vectors_BnD.shape[1]
        first_B1C = cond_BC.unsqueeze(1) + self.pos_start
        x_BTC = torch.cat((first_B1C, linear(self.word_embed, vectors_BnD).to(first_B1C.dtype)), dim=1)
        level_T = self.level_T[:places]
        is_data_BT = (torch.arange(places, device=given_B.device) <= given_B[:, None]).long()
        kind_BTC = self.n_d_embed(is_data_BT)
        x_BTC = x_BTC + self.lvl_embed(level_T) + self.pos_1LC[:, :places] + kind_BTC
        mask_TT = (level_T[:, None] > level_T) | torch.eye(places, dtype=torch.bool, device=level_T.device)

        def through(layer: nn.Module) -> Tensor:
            assert isinstance(layer, nn.Linear)
            return (
                linear(layer, kind_BTC) if everywhere else F.embedding(is_data_BT, linear(layer, self.n_d_embed.weight))
            )

        for block, layer in zip(self.blocks, self.layerwise_n_d_embed, strict=False):
            x_BTC = block(x_BTC, cond_BC, through(layer), mask_TT)
        states: Tensor = x_BTC + through(self.layerwise_n_d_embed[-1])
        return states[:, 1:]

    def logits(self, states_BnC: Tensor, labels_B: Tensor) -> Tensor:
        return linear(self.head, self.head_nm(states_BnC, self.class_emb(labels_B))).float()

    def vectors(self, states_BnC: Tensor, labels_B: Tensor) -> Tensor:
        vectors: Tensor = self.final_layer_conti(states_BnC, self.class_emb(labels_B))
        return vectors

    def cast_(self, dtype: torch.dtype) -> Student:
        """What products read is stored in a type; what is added and looked up stays in float32."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self


def empty_student(spec: ModelSpec) -> Student:
    """To be filled: on the way torch draws no weights of its own, from everybody's stream."""
    with torch.device("meta"):
        return Student(spec)


def student_of(spec: ModelSpec, teacher: Mapping[str, Tensor], *, seed: int) -> Student:
    """With the teacher's weights wherever it has any; the level and the place of the one-token scale are new, since the
    teacher's own first ones are the class token's here."""
    stream, student = torch.Generator().manual_seed(seed), empty_student(spec)
    state: dict[str, Tensor] = {}
    for name, empty in student.state_dict().items():
        known = teacher[name].detach().float().cpu() if name in teacher else None
        if name in ("lvl_embed.weight", "pos_1LC"):
            assert known is not None
            rows = known.flatten(0, -2)
            new = STD * torch.randn(1, rows.shape[1], generator=stream)
            state[name] = torch.cat((rows[:1], new, rows[1:])).view(empty.shape)
        elif known is not None:
            state[name] = known.clone()
        elif name.endswith("bias"):
            state[name] = torch.zeros(empty.shape)
        else:
            std = spec.width**-0.5 if name.endswith("scale_shift_table") else STD
            state[name] = std * torch.randn(empty.shape, generator=stream)
    student.load_state_dict(state, assign=True)
    return student
