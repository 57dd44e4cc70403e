"""Parts of FFNs: what the plan says of them, and that the engine computes just these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from varbench import load_pipeline, rows
from varbench.engine import expert_ffn
from varbench.engine.own_weights import own_numbers
from varbench.engine.pipeline import Pipeline
from varbench.errors import PlanError, UserError
from varbench.experts import Own, OwnParameters, WidthPolicy
from varbench.model import weighted
from varbench.model.transformer import OwnNumbers
from varbench.plan import cost
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.trace import differences, foreseen
from varbench.rows.grammar import Row

EXPERTS, LABELS = 8, [3, 7]


class Parts(WidthPolicy):
    """From scale 3 on: experts of every eighth unit, of which a table says how much each channel wants which."""

    routing_flops = 2 * models.SPEC.width * EXPERTS

    def __init__(self, *, chosen: int, routed: bool = True, experts: int = EXPERTS) -> None:
        self.chosen, self.routed, self.experts, self.own = chosen, routed, experts, OWN

    def count(self, layer: int, scale: int) -> int | None:
        return self.chosen if scale >= 3 else None

    def split(self, layer: int, *, own: Own) -> Tensor | None:
        return own["units"][layer]

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        return (hidden_RLC @ own["table"][layer].float().T).topk(count).indices


def initial(weights: Any, seed: int) -> dict[str, Tensor]:
    depth, (hidden, width) = models.SPEC.depth, weights["blocks.0.ffn.fc1.weight"].shape
    table = torch.randn(depth, EXPERTS, width, generator=torch.Generator().manual_seed(seed))
    return {"table": table, "units": torch.arange(hidden).view(-1, EXPERTS).T.expand(depth, -1, -1).contiguous()}


OWN = OwnParameters(
    shapes={"table": (models.SPEC.depth, EXPERTS, models.SPEC.width), "units": (models.SPEC.depth, EXPERTS, 32)},
    whole=("units",),
    initial=initial,
)


def row_of(pipe: Pipeline, name: str = "parts", **policy: Any) -> Row:
    policies = RowPolicies(name=name, width=Owned(plugin="parts", policy=Parts(**policy)))
    return replace(rows.resolve("full_var", pipe.model), name=name, policies=policies)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


class Masked(nn.Module):
    """The dense FFN with a mask on its hidden units: token by token, as slowly and plainly as can be."""

    def __init__(self, ffn: Any, layer: int, chosen: int, routed: bool) -> None:
        super().__init__()
        self.ffn, self.layer, self.chosen, self.routed = ffn, layer, chosen, routed

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        hidden = F.gelu(F.linear(x, self.ffn.fc1.weight, self.ffn.fc1.bias), approximate="tanh")
        if x.shape[1] >= 16:
            table = initial({"blocks.0.ffn.fc1.weight": self.ffn.fc1.weight}, 0)["table"][self.layer]
            for row in range(x.shape[0]):
                for token in range(x.shape[1]):
                    wanted = [float(x[row, token] @ table[expert]) for expert in range(EXPERTS)]
                    order = sorted(range(EXPERTS), key=lambda expert: -wanted[expert])
                    kept = order[: self.chosen] if self.routed else range(self.chosen)
                    hidden[row, token] *= torch.tensor([unit % EXPERTS in kept for unit in range(hidden.shape[-1])])
        return F.linear(hidden, self.ffn.fc2.weight, self.ffn.fc2.bias)


@pytest.mark.parametrize("routed", [True, False])
def test_the_engine_computes_the_chosen_experts(pipe: Pipeline, routed: bool) -> None:
    ours = pipe.generate(
        LABELS, seed=2, method=row_of(pipe, f"routed {routed}", chosen=3, routed=routed), return_logits=True
    )
    other = models.pipeline()
    for layer, block in enumerate(other.backbones["main"].blocks):
        block.ffn = Masked(block.ffn, layer, 3, routed)
    theirs = other.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    full = pipe.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert ours.logits is not None and theirs is not None and full is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    assert (full - theirs).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("dtype", "bound"), [pytest.param("float32", 1e-6, marks=pytest.mark.slow), ("bfloat16", 2**-6)]
)
@pytest.mark.parametrize("method", ["dmoe@untrained/m50", "actvar@m50r50"])
def test_experts_in_one_call_are_those_one_by_one(
    method: str, dtype: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU computes them, in pieces of 400 pairs or fewer, the last of which is smaller; call by call, since rounding may
    send a token of a later layer elsewhere. They are counted alike, and matrices lie as the GPU's kernel wants them to."""
    pipe = load_pipeline("tiny", device="cpu", dtype=dtype)
    labels = list(range(5))
    expected = pipe.generate(labels, seed=3, method=method).trace
    grouped, pairs = expert_ffn.grouped_experts, []

    def both(x: Tensor, chosen: Tensor, experts: expert_ffn.Experts) -> Tensor:
        with FlopCounterMode(display=False) as together:
            ours = grouped(x, chosen, experts)
        with FlopCounterMode(display=False) as apart:
            plain = expert_ffn.chosen_experts(x, chosen, replace(experts, seen=expert_ffn.NobodyWatches()))
        assert together.get_total_flops() == apart.get_total_flops() > 0
        assert ours.dtype == plain.dtype and float((ours - plain).abs().max() / plain.abs().max()) < bound
        pairs.append(chosen.numel())
        return plain

    def like(one: Tensor) -> Tensor:
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")

    shapes: list[tuple[Tensor, ...]] = []

    def product(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        assert weights.storage_offset() % 8 == 0
        shapes.append(tuple(map(like, (x, weights, ends))))
        return weighted.grouped_product(x, weights, ends)

    monkeypatch.setattr(expert_ffn, "grouped_product", product)
    monkeypatch.setattr(expert_ffn, "TOGETHER", 400)
    monkeypatch.setattr(expert_ffn, "_are_grouped", lambda x, experts: experts.split is None)
    monkeypatch.setattr(expert_ffn, "grouped_experts", both)
    assert pipe.generate(labels, seed=3, method=method).trace == expected
    assert any(count > 400 and count % 400 for count in pairs)
    for rows_of, matrices, ends in shapes if dtype == "bfloat16" else ():
        torch._grouped_mm(rows_of, matrices, offs=ends)  # looks at strides only


def test_layers_are_compiled_where_nobody_looks_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an FFN that a plugin put in the place of a layer's own as a whole."""
    compiled: list[str] = []

    def compile_(method: Any, **options: Any) -> Any:
        compiled.append(f"{type(method.__self__).__name__}.{method.__name__}")
        return method

    monkeypatch.setattr(torch, "compile", compile_)
    pipe = models.pipeline()
    plain = pipe.generate(LABELS).tokens
    block = pipe.backbones["main"].blocks[0]
    block.ffn = Masked(block.ffn, 0, EXPERTS, False)
    pipe.compile_layers(mode="default")
    own, others = compiled[:3], compiled[3:7]
    assert own == ["Masked.forward", "Attention.qkv", "Attention.out"]
    assert others == ["FeedForward.into", "FeedForward.out", "Attention.qkv", "Attention.out"]
    assert torch.equal(pipe.generate(LABELS).tokens, plain)


@pytest.mark.parametrize("routed", [True, False])
def test_what_is_computed_is_what_is_planned(pipe: Pipeline, routed: bool) -> None:
    row = row_of(pipe, f"counted {routed}", chosen=2, routed=routed)
    made = pipe.generate(LABELS, method=row)
    assert list(differences(foreseen(made.plan, batch=2, dtype="float32"), made.trace)) == []
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        pipe.generate(LABELS, method=row)
    said = cost.work(made.plan, batch=2, dtype="float32").flops
    assert counter.get_total_flops() == pytest.approx(said, rel=1e-3)
    full = cost.work(pipe.compile("full_var")[0], batch=2, dtype="float32")
    spared = (
        4 * 4 * (16 + 36 + 64) * 6 * 64 * (256 - 2 * 32)
    )  # rows, tokens from scale 3 on, layers, width, units left out
    routing = 4 * (16 + 36 + 64) * 6 * 2 * 64 * EXPERTS if routed else 0
    assert full.flops - said == spared - routing
    ours = cost.work(made.plan, batch=2, dtype="float32").weight_bytes
    assert ours - full.weight_bytes == 6 * EXPERTS * 64 * 4 + 6 * 256 * 8


def test_a_cpu_multiplies_few_kinds_of_row_counts(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of rows that there never was costs thirty products; with many images every expert has another one each time."""
    rows_of: list[int] = []

    def product(x: Tensor, *weights: Any, **how: Any) -> Tensor:
        rows_of.append(len(x))
        return weighted.product(x, *weights, **how)

    monkeypatch.setattr(expert_ffn, "product", product)
    pipe.generate(LABELS * 24, method=row_of(pipe, chosen=3, routed=True))
    assert max(rows_of) > 2 * expert_ffn.ROWS
    assert all(rows < expert_ffn.ROWS or rows % expert_ffn.ROWS == 0 for rows in rows_of)


def test_own_numbers_have_one_order_wherever_they_come_from(pipe: Pipeline) -> None:
    """Else a training of two stages could not be resumed in the second, which begins from the file of the first."""
    width = rows.resolve("actvar@m50r50", pipe.model).policies.width
    assert width is not None and width.policy.own is not None
    made = own_numbers(width, pipe.backbones["main"])
    turned = own_numbers(width, pipe.backbones["main"], held=dict(reversed(made.items())))
    assert len(made) > 1 and list(made) == list(turned) == list(width.policy.own.shapes)


def test_all_experts_are_the_full_model_bit_for_bit(pipe: Pipeline) -> None:
    made = pipe.generate(LABELS, method=row_of(pipe, "all of them", chosen=EXPERTS), return_logits=True)
    full = pipe.generate(LABELS, return_logits=True)
    assert made.logits is not None and full.logits is not None
    assert torch.equal(made.logits, full.logits)
    assert made.plan.steps == full.plan.steps


def test_rows_of_one_split_share_their_weights_and_leave_the_model_as_it_was(pipe: Pipeline) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.backbones["main"].state_dict().items()}
    two, three = (pipe.backbones_of(row_of(pipe, f"shares {chosen}", chosen=chosen))["main"] for chosen in (2, 3))
    assert two is three
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.backbones["main"].state_dict().items())
    assert two.block(0).attn.proj.weight.data_ptr() == pipe.backbones["main"].block(0).attn.proj.weight.data_ptr()


def test_own_numbers_of_a_file_are_used_and_misfits_are_named(pipe: Pipeline) -> None:
    held = initial({"blocks.0.ffn.fc1.weight": pipe.backbones["main"].block(0).ffn.fc1.weight}, 99)
    other = models.pipeline()
    net = other.backbones["main"]
    net.own = OwnNumbers("parts", held)
    again = Pipeline(tokenizer=other.tokenizer, backbones={"main": net}, device="cpu", dtype="float32", weights={})
    assert torch.equal(again.backbones_of(row_of(again, chosen=2))["main"].own.tensors()["table"], held["table"])
    assert not net.own.tensors(), "rows without the plugin do not carry its numbers"
    net.own = OwnNumbers("parts", {**held, "table": held["table"][:, :4]})
    again = Pipeline(tokenizer=other.tokenizer, backbones={"main": net}, device="cpu", dtype="float32", weights={})
    with pytest.raises(UserError, match=r"table is \(6, 4, 64\) of float32, not \(6, 8, 64\)"):
        again.generate(LABELS, method=row_of(again, chosen=2))


@pytest.mark.parametrize(
    ("experts", "chosen", "message"),
    [(7, 2, "7 experts of small's 256 hidden units are not of equal size"), (8, 9, "computes 9 experts of 8"), (8, 0, "0 experts of 8")],
)  # fmt: skip
def test_widths_that_cannot_be_are_refused(experts: int, chosen: int, message: str) -> None:
    policy = Parts(chosen=chosen, experts=experts)
    with pytest.raises(PlanError, match=message):
        compile_plan(models.SPEC, RowPolicies(name="x", width=Owned(plugin="parts", policy=policy)))
