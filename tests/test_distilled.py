"""Distilled Decoding: the flow against the teacher's probabilities, the student against its rule written out token by token, jumps,
work, examples that are made once, and training."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_files as golden
import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.data.shapes import Shapes
from varbench.engine.full_model import FullModel
from varbench.engine.subjects import load_generator
from varbench.errors import CheckpointError, UserError
from varbench.measure.honesty import against_statement
from varbench.measure.made_storages import held_through_a_step
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.cost import work
from varbench.plan.owned import RowPolicies
from varbench.train import generators, made_examples
from varbench.train.shipped import Shipped, put
from varbench.train.states import Checkpoints
from varbench.train.trainer import Budget
from varbench_plugins.distilled.drawing import drawn, nearest, noise_of, uniforms_of
from varbench_plugins.distilled.flow import codes_of, filtered, spread_of
from varbench_plugins.distilled.generator import Jumping, Teaching
from varbench_plugins.distilled.network import Student, empty_student, student_of

TINY, D16 = presets.preset("tiny").spec, presets.preset("var-d16").spec
SPEC = models.SPEC
TEACHING = Teaching(cfg=1.5, top_k=0, top_p=0.0, at=3)
POINTS = ("s1", "s2", "s2t1", "s2t2", "s1t3")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The flow.


@pytest.mark.parametrize("codes", [6, 60])
def test_over_random_noise_codes_come_as_often_as_the_teacher_says(codes: int) -> None:
    """Chi-square of 40,000 tokens; codes of probability 0 never come."""
    codebook, logits, count = 0.3 * normal(codes, 8), 1.5 * normal(codes, seed=1), 40_000
    logits[1] = -torch.inf
    noise = normal(count, 8, seed=2)
    counts = torch.bincount(codes_of(logits.expand(count, -1), noise, codebook), minlength=codes)
    expected = logits.softmax(0) * count
    assert counts[1] == 0
    chi_square = float(((counts - expected).square() / expected)[expected > 0].sum())
    assert chi_square < stats.chi2.ppf(0.999, codes - 2), "0.1 % of honest draws are further off"


def test_the_same_noise_always_ends_at_the_same_code_whatever_is_beside_it() -> None:
    codebook, logits, noise = normal(40, 8), normal(30, 40, seed=1), normal(30, 8, seed=2)
    whole = codes_of(logits, noise, codebook)
    assert torch.equal(codes_of(logits, noise, codebook), whole)
    assert torch.equal(torch.cat([codes_of(logits[i : i + 1], noise[i : i + 1], codebook) for i in range(30)]), whole)
    assert len(whole.unique()) > 5
    finer = codes_of(logits, noise, codebook, steps=500)
    assert (finer == whole).float().mean() > 0.9, "more steps hardly change where a path ends"


def test_the_flow_knows_no_unit() -> None:
    """Codes a hundred times as wide are reached by the same noise."""
    codebook, logits, noise = normal(20, 4), normal(50, 20, seed=1), normal(50, 4, seed=2)
    assert torch.equal(codes_of(logits, noise, codebook), codes_of(logits, noise, 100 * codebook))


def test_filters() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert (filtered(logits, top_k=0, top_p=0.0) == logits).all()
    assert filtered(logits, top_k=3, top_p=0.0).isfinite().tolist() == [[True, True, True, False]]
    assert filtered(logits, top_k=0, top_p=0.7).isfinite().tolist() == [[True, True, False, False]]


def test_draws_are_as_likely_as_they_are_said_to_be() -> None:
    chances = torch.tensor([0.2, 0.0, 0.5, 0.3])
    uniforms = uniforms_of(range(40), "x", replace(SPEC, sides=(1, 20)), device=torch.device("cpu"))
    counts = torch.bincount(drawn(chances.expand(*uniforms.shape, -1), uniforms).flatten(), minlength=4)
    expected = chances * uniforms.numel()
    assert counts[1] == 0
    assert float(((counts - expected).square() / expected)[expected > 0].sum()) < stats.chi2.ppf(0.999, 2)


# The student.


def lively(spec: Any = SPEC) -> Student:
    student = empty_student(spec)
    student.load_state_dict(golden.ruled_state(student, "student"), assign=True)
    return student.requires_grad_(False)


def naive(student: Student, label: int, vectors_LD: Tensor, given: int) -> tuple[Tensor, Tensor]:
    """Logits and vectors of one image's tokens, one after another: each keeps the keys and values of its own, and reads those of
    itself and of tokens of coarser levels."""
    spec, state = student.spec, student.state_dict()
    level = [0] + [scale + 1 for scale, count in enumerate(spec.tokens) for _ in range(count)]

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()

    cond = state["class_emb.weight"][label]
    cached: dict[int, list[tuple[int, int, Tensor, Tensor]]] = {layer: [] for layer in range(spec.depth)}
    logits, found = [], []
    for place, own in enumerate(level):
        kind = state["n_d_embed.weight"][1 if place <= given else 0]
        x = cond + state["pos_start"][0, 0] if place == 0 else affine("word_embed", vectors_LD[place - 1])
        x = x + state["lvl_embed.weight"][own] + state["pos_1LC"][0, place] + kind
        for layer in range(spec.depth):
            name = f"blocks.{layer}"
            six = affine(f"{name}.ada_lin.1", F.silu(cond)).view(6, -1)
            qkv = state[f"{name}.attn.mat_qkv.weight"] @ (norm(x) * (1 + six[2]) + six[4])
            q, k, v = qkv.view(3, spec.heads, -1)
            q, v = q + state[f"{name}.attn.q_bias"].view_as(q), v + state[f"{name}.attn.v_bias"].view_as(v)
            scale = state[f"{name}.attn.scale_mul_1H11"].view(-1, 1).clamp(max=math.log(100)).exp()
            q, k = q / q.norm(dim=1, keepdim=True) * scale, k / k.norm(dim=1, keepdim=True)
            cached[layer].append((place, own, k, v))
            seen = [(k, v) for other, its, k, v in cached[layer] if other == place or its < own]
            heads = []
            for head in range(spec.heads):
                weights = torch.stack([q[head] @ k[head] for k, _ in seen]).softmax(0)
                heads.append(sum(w * v[head] for w, (_, v) in zip(weights, seen, strict=True)))
            x = x + affine(f"{name}.attn.proj", torch.cat(heads)) * six[0]
            x = x + affine(f"layerwise_n_d_embed.{layer}", kind)
            hidden = F.gelu(affine(f"{name}.ffn.fc1", norm(x) * (1 + six[3]) + six[5]), approximate="tanh")
            x = x + affine(f"{name}.ffn.fc2", hidden) * six[1]
        x = x + affine(f"layerwise_n_d_embed.{spec.depth}", kind)
        scale, shift = affine("head_nm.ada_lin.1", F.silu(cond)).view(2, -1)
        logits.append(affine("head", norm(x) * (1 + scale) + shift))
        shift, scale = state["final_layer_conti.scale_shift_table"] + cond
        found.append(affine("final_layer_conti.linear", norm(x) * (1 + scale) + shift))
    return torch.stack(logits[1:]), torch.stack(found[1:])


NARROW = replace(SPEC, sides=(1, 2, 3), depth=3)


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_student_is_its_rule_token_by_token(everywhere: bool) -> None:
    student, vectors_BLD = lively(NARROW), normal(2, NARROW.length, 8)
    labels, given = torch.tensor([3, 7]), torch.tensor([0, 5])
    states = student.states(labels, vectors_BLD, given, everywhere=everywhere)
    logits, made = student.logits(states, labels), student.vectors(states, labels)
    for image in range(2):
        by_hand = naive(student, int(labels[image]), vectors_BLD[image], int(given[image]))
        assert (logits[image] - by_hand[0]).abs().max() < 2e-4
        assert (made[image] - by_hand[1]).abs().max() < 2e-4


def test_it_begins_as_its_teacher() -> None:
    teacher = models.transformer(SPEC)
    student = student_of(SPEC, dict(teacher.named_parameters()), seed=0)
    own, its = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(own[name], its[name]) for name in its if name not in ("lvl_embed.weight", "pos_1LC"))
    assert torch.equal(own["pos_1LC"][:, 2:], its["pos_1LC"][:, 1:]) and torch.equal(
        own["pos_1LC"][:, 0], its["pos_1LC"][:, 0]
    )
    assert torch.equal(own["lvl_embed.weight"][2:], its["lvl_embed.weight"][1:])
    assert not torch.equal(own["lvl_embed.weight"][1], its["lvl_embed.weight"][1])


@pytest.mark.parametrize(("depth", "millions"), [(16, 327), (20, 635), (24, 1090)])
def test_published_numbers_of_parameters(depth: int, millions: float) -> None:
    spec = presets.preset(f"var-d{depth}").spec
    said = generator("distilled@s1", spec).work(1).parameters
    assert said is not None
    assert said == sum(tensor.numel() for tensor in empty_student(spec).state_dict().values())
    assert said / 1e6 == pytest.approx(millions, rel=0.005)


# Jumps.


def generator(row: str, spec: Any) -> Jumping:
    owned = rows.resolve(row, spec).policies.generator
    assert owned is not None and isinstance(owned.policy, Jumping)
    return owned.policy


def loaded(row: str, spec: Any = SPEC) -> Jumping:
    """With a lively student and teacher."""
    own = generator(row, spec)
    tokenizer = models.tokenizer(spec)
    own.take(tokenizer=tokenizer, weights=lively(spec).state_dict())
    own.meet(FullModel(models.transformer(spec), tokenizer, dtype=torch.float32), tokenizer=tokenizer)
    own.load(device="cpu", dtype="float32", seed=0)
    return own


def jumped_by_hand(own: Jumping, labels: Tensor, images: range, *, at: int | None, split: int) -> Tensor:
    """As the authors tell it: the whole sequence at every jump, the same noise put back, all read and what was given kept."""
    student, spec = own._student, own.model
    codebook = own._tokenizer.codebook  # type: ignore[union-attr]
    noise = spread_of(codebook) * noise_of(images, "making 5", spec, device=labels.device)
    x = noise
    for scales in (0, at) if at is not None else (0,):
        given = spec.starts[scales]
        x = torch.cat((x[:, :given], noise[:, given:]), dim=1)
        states = student.states(labels, x, torch.full_like(labels, given))  # type: ignore[union-attr]
        codes = codebook[student.logits(states, labels).argmax(-1)]  # type: ignore[union-attr]
        read = student.vectors(states, labels).clone()  # type: ignore[union-attr]
        read[:, : spec.starts[split]] = codes[:, : spec.starts[split]]
        read[:, :given] = x[:, :given]
        x = read
    return x


@pytest.mark.parametrize("split", [0, 2, 3, 6])
@pytest.mark.parametrize("point", ["s1", "s2"])
def test_jumps_run_no_more_than_is_read_and_give_the_same(point: str, split: int) -> None:
    labels, images = torch.tensor([1, 4, 9]), range(3, 6)
    lean, whole = (loaded(f"distilled@{point}:split={split}{more}") for more in ("", ":whole=true"))
    made = lean.vectors_of(labels, images, seed=5)
    by_hand = jumped_by_hand(lean, labels, images, at=3 if point == "s2" else None, split=split)
    assert (made - by_hand).abs().max() < 1e-4
    assert (whole.vectors_of(labels, images, seed=5) - by_hand).abs().max() < 1e-4
    assert torch.equal(lean.vectors_of(labels[1:], range(4, 6), seed=5), made[1:]) or (
        (lean.vectors_of(labels[1:], range(4, 6), seed=5) - made[1:]).abs().max() < 1e-4
    )
    assert (lean.vectors_of(labels, images, seed=6) - made).abs().max() > 0.1


def test_the_teacher_goes_on_from_codes_that_it_is_given() -> None:
    """In one pass with its first scale, as scale by scale."""
    full = FullModel(models.transformer(SPEC), models.tokenizer(), dtype=torch.float32)
    seen: dict[int, Tensor] = {}

    def choose(logits_BlV: Tensor, scale: int) -> Tensor:
        seen[scale] = logits_BlV
        return logits_BlV.argmax(-1)

    labels = torch.tensor([2, 6])
    whole = full.draw(labels, choose, cfg=2.0, until=5)
    first, seen = seen, {}
    assert whole.shape == (2, SPEC.starts[5])
    again = full.draw(labels, choose, cfg=2.0, until=5, given_Bn=whole[:, : SPEC.starts[3]])
    assert torch.equal(again, whole) and set(seen) == {3, 4}
    assert all((seen[scale] - first[scale]).abs().max() < 1e-3 for scale in seen)


@pytest.mark.parametrize(("point", "given"), [("s2t1", 2), ("s2t2", 1), ("s1t3", 0)])
def test_scales_that_the_teacher_makes_are_its_own_given_what_was_before(point: str, given: int) -> None:
    """With the likeliest code alone to draw from, they are what the full model finds likeliest."""
    own = loaded(f"distilled@{point}:top_k=1")
    labels, images = torch.tensor([1, 8]), range(2)
    made = own.vectors_of(labels, images, seed=5)
    codes = nearest(made[:, : SPEC.starts[3]], own._tokenizer.codebook)  # type: ignore[union-attr]
    if given:
        first = loaded("distilled@s2").vectors_of(labels, images, seed=5)
        assert torch.equal(first[:, : SPEC.starts[given]], made[:, : SPEC.starts[given]])
    pipe = models.pipeline()
    padded = torch.cat((codes, torch.zeros(2, SPEC.length - codes.shape[1], dtype=torch.long)), dim=1)
    logits = pipe.generate(labels, cfg=1.5, tokens=padded, return_logits=True).logits
    assert logits is not None
    span = slice(SPEC.starts[given], SPEC.starts[3])
    assert torch.equal(logits[:, span].argmax(-1), codes[:, span])


# Work.


def test_work_at_published_sizes() -> None:
    """As the authors run it, one step computes 1.8 times less than ten steps with guidance, and two steps 1.1 times more. A first
    jump of two that runs no more than it gives makes two steps hardly dearer than one."""
    full = work(compile_plan(D16, RowPolicies(name="full")), batch=1, dtype="float16").transformer_flops
    one, two = (generator(f"distilled@{point}:whole=true", D16).work(1).flops for point in ("s1", "s2"))
    assert full / one == pytest.approx(1.79, abs=0.02) and two / full == pytest.approx(1.11, abs=0.02)  # type: ignore[operator]
    lean_one, lean_two = (generator(f"distilled@{point}", D16).work(1).flops for point in ("s1", "s2"))
    assert full / lean_one == pytest.approx(1.97, abs=0.02)  # type: ignore[operator]
    assert lean_two / lean_one == pytest.approx(1.07, abs=0.02)  # type: ignore[operator]
    steps = {
        point: generator(f"distilled@{point}", D16).work(1).steps for point in ("s1", "s2", "s2t1", "s2t2", "s1t5")
    }
    assert steps == {"s1": 1, "s2": 2, "s2t1": 3, "s2t2": 4, "s1t5": 6}, "as published"


@pytest.mark.parametrize("whole", ["", ":whole=true"])
@pytest.mark.parametrize("point", [*POINTS, "independent"])
def test_flops_are_those_that_torch_counts(point: str, whole: str) -> None:
    own = generator(f"distilled@{point}{whole}", SPEC)
    load_generator(own, model=SPEC, device=torch.device("cpu"), dtype="float32", seed=0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        images = own.generate([1, 2], seed=0, first_image=0)
    said = own.work(2)
    assert counter.get_total_flops() == said.flops + said.decoder_flops  # type: ignore[operator]
    assert images.shape == (2, 3, 16, 16) and 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize("point", ["s2", "s2t1", "s1t3"])
def test_what_is_held_from_pass_to_pass_is_stated(point: str) -> None:
    """In 16 bits and at a batch where the vectors made of the class are larger than keys and values."""
    own = generator(f"distilled@{point}", TINY)
    load_generator(own, model=TINY, device=torch.device("cpu"), dtype="bfloat16", seed=0)
    stated, images = own.work(24), torch.empty(24, 3, 32, 32).nbytes
    assert stated.steps is not None
    with torch.inference_mode():
        held = held_through_a_step(lambda: own.generate([1] * 24, seed=0, first_image=0), steps=stated.steps)
    assert against_statement(stated.cache_peak_bytes, held=held, images=images) == []


# Examples, and learning from them.

VAE, MAIN = (presets.shipped_files("tiny")[part] for part in ("vae", "main"))
BUDGET = Budget(steps=6, peak_rate=1e-3, batch=4, images=24, looks=1, dtype="float32")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[range]:
    """The numbers of the examples that the full model is asked for; few at a time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(made_examples, "PART", 8)
    monkeypatch.setattr("varbench.train.evaluation.IMAGES", 8)
    asked: list[range] = []
    whole = Jumping.made

    def counted(self: Jumping, labels_B: Tensor, numbers: range) -> Tensor:
        asked.append(numbers)
        return whole(self, labels_B, numbers)

    monkeypatch.setattr(Jumping, "made", counted)
    return asked


def weights_of(row: str = "distilled@s1", **changes: Any) -> Any:
    budget = dataclasses.replace(BUDGET, **changes)
    resolved = rows.resolve(row, TINY)
    return generators.generator_weights(resolved, vae=VAE, main=MAIN, data=Shapes(side=32), budget=budget)


@pytest.mark.slow
def test_examples_are_made_once_and_serve_every_point_and_training(made: list[range]) -> None:
    first = weights_of()
    assert [numbers.start for numbers in made] == [0, 8, 16, made_examples.HELD_OUT]
    assert weights_of("distilled@s2:split=2").files == first.files
    other = weights_of(steps=3)
    assert other.files != first.files and len(made) == 4
    told = first.record["examples"]
    assert told["count"] == 24 and told["seconds"] > 0
    weights_of("distilled@s1:cfg=3")
    assert len(made) == 8, "another guidance makes others"
    look, last = first.record["stages"]["train"]["evaluations"]
    assert last["value"] < look["value"]
    assert first.record["stages"]["train"]["class_drop"] == 0


def test_making_goes_on_where_it_was(made: list[range], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Jumping.made

    def killed(self: Jumping, labels_B: Tensor, numbers: range) -> Tensor:
        if numbers.start == 16:
            raise MemoryError
        return counted(self, labels_B, numbers)

    monkeypatch.setattr(Jumping, "made", killed)
    with pytest.raises(MemoryError):
        weights_of()
    assert len(made) == 2
    monkeypatch.setattr(Jumping, "made", counted)
    weights_of()
    assert [numbers.start for numbers in made][2:] == [16, made_examples.HELD_OUT]


def test_what_ships_is_used_and_weights_of_another_training_are_named(
    made: list[range], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained = weights_of(looks=0)
    put(tmp_path / "ships", "distilled", files=trained.files, record=trained.record)
    asked = {
        "vae": VAE,
        "main": MAIN,
        "data": Shapes(side=32),
        "shipped": Shipped(assets=tmp_path / "ships", budget=BUDGET),
    }
    monkeypatch.setattr(generators, "GENERATOR", dataclasses.replace(BUDGET, looks=0))
    found = generators.generator_weights(rows.resolve("distilled@s2", TINY), **asked, budget=replace(BUDGET, steps=1))
    assert (
        found.origin == "shipped"
        and found.files[generators.PART].parent == tmp_path / "ships" / "recipes" / "distilled"
    )
    other = rows.resolve("distilled@s1:cfg=3", TINY)
    assert generators.generator_ahead(other, **asked, budget=BUDGET) is None
    ready, note = generators._shipped(other, **asked)
    assert ready is None and note is not None and "distilled are of another" in note


def test_a_training_that_one_point_began_is_ended_by_another(
    made: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, seen = Jumping.losses, []

    def killed(self: Jumping, *given: Any) -> Tensor:
        seen.append(given)
        if len(seen) == 3:
            raise MemoryError
        return losses(self, *given)

    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    monkeypatch.setattr(Jumping, "losses", killed)
    with pytest.raises(MemoryError):
        weights_of("distilled@s1", looks=0, steps=4)
    weights_of("distilled@s2", looks=0, steps=4)
    assert len(seen) == 5, "two steps, one that was killed, and the two that were left"


def test_an_example_is_its_numbers_own(made: list[range]) -> None:
    own = generator("distilled@s1", SPEC)
    own.meet(FullModel(models.transformer(SPEC), models.tokenizer(), dtype=torch.float32), tokenizer=models.tokenizer())
    labels = torch.tensor([1, 4, 9])
    whole = own.made(labels, range(5, 8))
    assert torch.equal(torch.cat((own.made(labels[:1], range(5, 6)), own.made(labels[1:], range(6, 8)))), whole)
    assert whole[:, 0].tolist() == [5, 6, 7] and not torch.equal(
        whole[0, 1:], own.made(labels[:1], range(9, 10))[0, 1:]
    )


def test_what_was_trained_is_what_runs(made: list[range]) -> None:
    trained = weights_of().files[generators.PART]
    images = []
    for weights in (trained, None):
        own = generator("distilled@s1", TINY)
        load_generator(
            own, model=TINY, device=torch.device("cpu"), dtype="float32", seed=0, vae=VAE, main=MAIN, weights=weights
        )
        images.append(own.generate([1], seed=0, first_image=0))
    assert not torch.equal(*images)
    table = generator("distilled@independent", TINY)
    load_generator(
        table, model=TINY, device=torch.device("cpu"), dtype="float32", seed=0, vae=VAE, main=MAIN, weights=trained
    )
    examples = np.concatenate(
        [np.load(file)["examples"] for file in sorted((trained.parents[2] / "examples").glob("*/*"))]
    )
    seen = {tuple(sorted(set(examples[:24][np.arange(24) % 10 == 3][:, 1 + place]))) for place in (0, 5)}
    codes = nearest(
        table.vectors_of(torch.full((50,), 3), range(50), seed=1),
        table._tokenizer.codebook,  # type: ignore[union-attr]
    )
    assert {tuple(sorted(set(codes[:, place].tolist()))) for place in (0, 5)} == seen


def test_a_student_learns_a_few_examples_by_heart() -> None:
    own = loaded("distilled@s1", NARROW)
    own.meet(
        FullModel(models.transformer(NARROW), models.tokenizer(NARROW), dtype=torch.float32),
        tokenizer=models.tokenizer(NARROW),
    )
    labels = torch.arange(8) % 10
    examples = own.made(labels, range(8))
    network = own.network_for(models.tokenizer(NARROW), examples, seed=0)
    before = own.losses(network, examples, labels).mean()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        found = own.losses(network, examples, labels).mean()
        found.backward()
        optimizer.step()
    assert found < 0.2 * before
    noise = spread_of(models.tokenizer(NARROW).codebook) * noise_of(
        range(8), "learning", NARROW, device=torch.device("cpu")
    )
    codes = network.logits(network.states(labels, noise, torch.zeros(8)), labels).argmax(-1)
    assert (codes == examples[:, 1:])[::2].float().mean() > 0.9


def test_half_of_a_batch_is_shown_the_scales_of_the_second_jump() -> None:
    """What is given is not asked for: an example's loss does not depend on it where it is data, and does where it is noise's end."""
    own = loaded("distilled@s1", NARROW)
    own.meet(
        FullModel(models.transformer(NARROW), models.tokenizer(NARROW), dtype=torch.float32),
        tokenizer=models.tokenizer(NARROW),
    )
    seen: list[Tensor] = []

    class Looking(Student):
        def states(self, labels_B: Tensor, vectors_BnD: Tensor, given_B: Tensor, *, everywhere: bool = False) -> Tensor:
            seen.extend((vectors_BnD, given_B))
            return super().states(labels_B, vectors_BnD, given_B, everywhere=everywhere)

    network = lively(NARROW)
    network.__class__ = Looking
    examples = own.made(torch.tensor([1, 1]), range(2))
    own.losses(network, examples, torch.tensor([1, 1]))
    vectors, given = seen
    assert given.tolist() == [0, NARROW.starts[1]]
    codebook = models.tokenizer(NARROW).codebook
    assert torch.equal(vectors[1, :1], codebook[examples[1, 1:2]])
    assert not torch.isclose(torch.cdist(vectors[0], codebook), torch.zeros(())).any()
    assert vectors[0].std() == pytest.approx(spread_of(codebook), rel=0.2)


# Files and settings.


@pytest.mark.parametrize("nest", ["ema_parameters", "var_wo_ddp", None])
def test_official_files(nest: str | None, tmp_path: Path) -> None:
    student = lively(SPEC)
    state = {**student.state_dict(), "lvl_1L": torch.zeros(1), "blocks.0.attn.zero_k_bias": torch.zeros(64)}
    torch.save(state if nest is None else {"trainer": {nest: state}, "args": {}}, tmp_path / "dd.pth")
    own = generator(f"distilled@s1:weights={tmp_path / 'dd.pth'}", SPEC)
    assert (
        own.trained
        and generators.trained_generator(rows.resolve(f"distilled@s1:weights={tmp_path / 'dd.pth'}", SPEC)) is None
    )
    load_generator(own, model=SPEC, device=torch.device("cpu"), dtype="float32", seed=0)
    assert own._student is not None
    assert torch.equal(own._student.state_dict()["head.weight"], student.state_dict()["head.weight"])
    other = generator(f"distilled@s1:weights={tmp_path / 'dd.pth'}", replace(SPEC, depth=5))
    with pytest.raises(CheckpointError, match=r"does not fit small: \d+ tensors differ, as blocks.5"):
        load_generator(other, model=replace(SPEC, depth=5), device=torch.device("cpu"), dtype="float32", seed=0)


def test_published_figures_stand_beside_their_points() -> None:
    found = {row.name: row.published[0].figures["fid"] for row in rows.expand("distilled", D16, all_settings=True)}
    assert found == {
        "distilled@s1": 9.94, "distilled@s2": 7.82, "distilled@s2t1": 6.54, "distilled@s2t2": 5.47, "distilled@s1t5": 5.03,
    }  # fmt: skip
    assert not rows.resolve("distilled@s1", presets.preset("var-d30").spec).published


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("distilled@s2t3", "s2t1 to s2t2, or s1t3"),
        ("distilled@s1t2", "s2t1 to s2t2, or s1t3"),
        ("distilled@s1:split=9", "6 scales, so give 0 to 6"),
        ("distilled@s1:top_p=2", "top_p 2"),
        ("distilled@independent:weights=x.pth", "leave weights= out"),
    ],
)
def test_wrong_settings(row: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows.resolve(row, TINY)


@pytest.mark.slow
def test_it_keeps_its_promises() -> None:
    from varbench.check import check

    assert check("distilled") == []
