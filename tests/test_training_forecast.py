"""What a training is said to take, before it begins, is what it takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import SPEC
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.__main__ import main
from varbench.engine.teacher import TeacherPass
from varbench.model.transformer import Transformer, initialise_
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.hardware import KNOWN, Hardware
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.sizes import matrices
from varbench.policies import MAIN, TokenPolicy
from varbench.rows import expand
from varbench.train.curriculum import attention_of
from varbench.train.recipes import full_plan
from varbench.train.trainer import DTYPES
from varbench.train.training_forecast import in_a_line, pass_work, stages_of
from varbench.train.training_options import configured

MODEL = replace(SPEC, sides=(1, 2, 4, 8), depth=4, width=128, heads=4)
IMAGES = 8


class LeavesOut(TokenPolicy):
    """At the last scale half of the layers have no attention, and one no FFN."""

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        left = layer == 0 if sublayer == "ffn" else layer > 1
        return 0 if scale == MODEL.scales - 1 and left else None


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_bytes_that_wait_for_the_backward_pass_and_flops_are_those_that_are_counted(
    dtype: str, recompute: bool, whole: bool
) -> None:
    halves = RowPolicies(name="halves", tokens=Owned(plugin="test", policy=LeavesOut()))
    plan = full_plan(MODEL) if whole else compile_plan(MODEL, halves)
    model = initialise_(Transformer(MODEL), torch.Generator().manual_seed(0))
    features = torch.rand(IMAGES, MODEL.length - 1, MODEL.tokenizer.code_dim)
    tokens = torch.zeros(IMAGES, MODEL.length, dtype=torch.long)
    run = TeacherPass(plan, MAIN, recompute=recompute)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = run.logits(
                model, features, torch.zeros(IMAGES, dtype=torch.long), dtype=DTYPES[dtype],
                attend=attention_of(torch.device("cpu")),
            )  # fmt: skip
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        held = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        loss.backward()
    said = pass_work(plan, MAIN, scales=MODEL.scales, dtype=dtype, explicit=True, recompute=recompute)
    assert counter.get_total_flops() == pytest.approx((4 if recompute else 3) * said.flops * IMAGES, rel=0.06)
    if recompute:  # a layer at a time comes to it in the backward pass, where these hooks do not look
        assert held < said.activations * IMAGES
        return
    copies = 2 * sum(numbers for numbers, _ in matrices(MODEL).values()) if dtype == "bfloat16" else 0
    assert held == pytest.approx(said.activations * IMAGES + copies, rel=0.15)


def test_a_subnet_takes_less_and_a_schedule_the_mean_of_what_it_trains() -> None:
    model = presets.preset("tiny").spec

    def work(name: str) -> float:
        (stage,) = stages_of(rows.resolve(name, model), steps=200, dtype="float32", device="cpu")
        return stage.flops

    full, half, all_of_it = map(work, ("full_var@continued", "fixed_ratio@p05/d8", "fixed_ratio@p10/d8"))
    assert all_of_it < half < full
    assert half == pytest.approx((full + all_of_it) / 2, rel=0.1)


def test_what_a_step_takes_whatever_it_trains_makes_a_subnets_step_dearer_than_its_products() -> None:
    """Weights and operators: on a machine that does either at once there are products alone."""
    model = presets.preset("tiny").spec
    machine = replace(KNOWN["cpu-2-cores"], efficiency={"bfloat16": 0.4}, operator_us=40.0)

    def shares(hardware: Hardware) -> tuple[float, float]:
        seconds, flops = [], []
        for name in ("full_var@continued", "fixed_ratio@p10/d8"):
            (stage,) = stages_of(rows.resolve(name, model), steps=200, dtype="bfloat16", device="cpu")
            seconds.append(stage.seconds(32, gpus=1, hardware=hardware, dtype="bfloat16"))
            flops.append(stage.flops)
        return seconds[1] / seconds[0], flops[1] / flops[0]

    at_once, products = shares(replace(machine, bandwidth_gbs=1e9, operator_us=0.0))
    assert at_once == pytest.approx(products)
    both, _ = shares(machine)
    for one in (replace(machine, bandwidth_gbs=1e9), replace(machine, operator_us=0.0)):
        assert products < shares(one)[0] < both
    card = replace(machine, device="cuda")
    assert shares(card) == shares(replace(card, operator_us=0.0)), "there the host is ahead"


def test_two_stages_each_have_their_own() -> None:
    model = presets.preset("tiny").spec
    drafter, refiner = stages_of(rows.resolve("code@n4", model), steps=100, dtype="bfloat16", device="cuda")
    assert (drafter.name, refiner.name) == ("drafter", "refiner")
    assert drafter.steps + refiner.steps == 100
    assert drafter.largest(drafter.needed(16)) == 16 and drafter.largest(drafter.fixed - 1) == 0


def test_the_command_says_what_fits_a_card_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "variant", "--training", "--model", "var-d30", "--hardware", "H100-SXM", "--batch", "1024"]
    assert main([*words, "--gpus", "8", "--parts", "8"]) == 0
    said = capsys.readouterr().out
    assert "variant@progressive" in said and "over 8 processes in 8 parts" in said
    assert main([*words, "--parts", "64", "--recompute", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)
    assert 40 < stage["fixed"] / 2**30 < 44, "20 bytes a weight and a copy in bfloat16: it fits one card of 80 GB"


def test_a_line_says_memory_and_on_a_known_device_the_time_of_all_stages() -> None:
    told = {"dtype": "bfloat16", "device": "cuda"}
    stages = [*stages_of(rows.resolve("code@n4", presets.preset("var-d30").spec), steps=84_450, **told)]
    shared = {"batch": 1024, "gpus": 4, "parts": 16, "dtype": "bfloat16"}
    memory = max(stage.needed(16) for stage in stages) / 2**30
    assert in_a_line(stages, **shared, device=None) == f"84,450 steps of 1,024 images; {memory:.3g} GiB a process"
    card = KNOWN["H100-SXM"]
    hours = sum(s.steps * s.seconds(1024, gpus=4, hardware=card, dtype="bfloat16") for s in stages) / 3600
    assert in_a_line(stages, **shared, device=card).endswith(f", at least {hours:.1f} h by the rates of H100-SXM")
    half = replace(card, efficiency={"bfloat16": 0.5})
    assert in_a_line(stages, **shared, device=half).endswith(f", about {2 * hours:.1f} h by the rates of H100-SXM")


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["variant", "--training", "--batch", "10", "--gpus", "4"], "has no 4 x 1 equal parts", 2),
        (["variant", "--training", "--parts", "0"], "--parts is 0; give 1 or more", 2),
        (["hack@b25", "--training"], "names no row whose recipe trains", 4),
        (["code", "--training", "--steps", "2"], "too few for a drafter and a refiner", 2),
    ],
)
def test_what_cannot_be_trained_so_is_said(
    words: list[str], said: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("name", "gpus"), [("variant-d30-8-gpus", 8), ("variant-d30-1-gpu", 1), ("code-d30-d16", 4)])
def test_the_trainings_that_were_published_can_be_asked_for_and_fit_their_cards(name: str, gpus: int) -> None:
    given, by_stage = configured(Path(__file__).parents[1] / "docs" / "trainings" / f"{name}.toml")
    (row,) = {found.recipe_name: found for found in expand(given["what"], presets.preset(given["model"]).spec)}.values()
    told = {"dtype": given["dtype"], "device": "cuda", "recompute": given.get("recompute", False)}
    stages = [*stages_of(row, steps=given["steps"], **told)]
    at_once = given["batch"] // gpus // given["parts"]
    assert at_once * gpus * given["parts"] == given["batch"]
    assert all(stage.needed(at_once) < 72 * 2**30 for stage in stages)
    assert by_stage.keys() <= {stage.name for stage in stages}
