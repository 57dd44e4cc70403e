"""Rows that replace the loop: they are measured from outside, and held to what can be seen from there."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from varbench import rows
from varbench.engine.pipeline import load_pipeline
from varbench.errors import PlanError, UserError
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.policies import Generator, Work
from varbench.record import Status
from varbench.record.options import Options
from varbench.rows.manager import manager
from varbench.run import generator_task, tasks
from varbench.run.defaults import resolve
from varbench.run.jobs import Job
from varbench.run.prepare import prepare
from varbench.run.reasons import of_exception

TINY = presets.preset("tiny").spec


class Grey(Generator):
    """Grey images, each a little different, as its number says."""

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        self.weights = torch.ones(1000)

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        shades = torch.tensor([(seed + first_image + place) % 7 / 7 for place in range(len(labels))])
        return shades.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).clone()

    def work(self, batch: int) -> Work:
        return Work(flops=12.0 * batch, steps=3, parameters=len(self.weights))


class Dice(Grey):
    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        return torch.rand(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(torch.seed() % 1000))


class TooFew(Grey):
    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        return super().generate(labels[1:], seed=seed, first_image=first_image)


class Heard:
    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.statuses: list[Status] = []

    def say(self, event: str, **content: Any) -> None: ...

    def alive(self, **content: Any) -> None: ...

    def result(self, row: str, **content: Any) -> None:
        self.results.append(content)

    @contextlib.contextmanager
    def row(self, row: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.statuses.append(of_exception(error).status)


ASKED: dict[str, Any] = {
    "model": "tiny", "device": "cpu", "dtype": "float32", "top_k": 0, "top_p": 0.0, "batch": 4, "images": 0,
    "rounds": 1, "count": 3, "seconds": 0.0,
}  # fmt: skip


def measured(generator: Generator, task: str, **changes: Any) -> Heard:
    policies = RowPolicies(name="test", generator=Owned(plugin="test", policy=generator))
    row = rows.Row(name="test", model=TINY, settings=(), plugins=(), parameters={}, policies=policies)
    job = Job(task=task, options=Options(**{**ASKED, **changes}), rows=("test",), files=None, full="full_var")  # type: ignore[arg-type]
    heard = Heard()
    generator_task.run(job, row, heard)  # type: ignore[arg-type]
    return heard


def test_speed_has_the_columns_that_can_be_seen_from_outside() -> None:
    (found,) = measured(Grey(), "speed", count=2).results
    assert {regime: set(columns) for regime, columns in found["columns"].items()} == {
        "throughput": {"with_decoder", "end_to_end"}, "latency": {"with_decoder", "end_to_end"},
    }  # fmt: skip
    assert all(len(samples) == 2 for columns in found["columns"].values() for samples in columns.values())


def test_memory_and_the_statement_of_work() -> None:
    (found,) = measured(Grey(), "memory").results
    assert found["weights"] == 4000
    assert (found["trace"]["flops"], found["trace"]["steps"], found["trace"]["layer_tokens"]) == (48.0, 3, None)
    assert found["findings"] == found["changed"] == []
    assert found["kernel"] is None
    assert "written out" in found["kernel_missing"]
    assert found["rss_growth"] >= 0
    assert "activations" not in found
    assert set(found["missing"]) == {"state_peak_bytes", "state_after_bytes", "activations_peak_bytes"}


def test_the_memory_pass_of_a_row_that_has_a_plan_sees_its_kernel() -> None:
    heard = Heard()
    job = Job(
        task="memory", options=Options(**{**ASKED, "batch": 1}), rows=("variant@d2",), files=None, full="full_var"
    )
    tasks.measure_memory(job, load_pipeline("tiny", random=True), heard)  # type: ignore[arg-type]
    assert heard.statuses == []
    (found,) = heard.results
    assert found["kernel"] == "scaled_dot_product_flash_attention_for_cpu"
    assert found["findings"] == found["changed"] == []


def test_quality_of_a_generator_with_weights() -> None:
    (found,) = measured(Grey(), "quality", images=64, batch=24).results
    assert found["samples"]["tokens_sha256"] is None
    assert found["samples"]["labels"][:11] == (*range(10), 0)
    scores = {score["name"]: score for score in found["scores"]}
    assert scores["FD-shapes"]["n"] == 64
    assert scores["FD-shapes"]["value"] > 10


def test_what_is_wrong_with_a_generator_is_found() -> None:
    (found,) = measured(Dice(), "memory").results
    assert found["findings"] == ["the same call gave other images"]
    assert found["changed"] == ["torch random state"]
    assert measured(TooFew(), "memory").statuses == [Status.WRONG_OUTPUT]
    assert measured(TooFew(), "quality", images=8).statuses == [Status.WRONG_OUTPUT]


def test_files_that_a_parameter_names_count_by_content(tmp_path: Path) -> None:
    """Other weights under the same name are another input, so a resumed run measures the row again."""
    (tmp_path / "model_index.json").write_text("{}")
    weights = tmp_path / "transformer" / "weights"
    weights.parent.mkdir()

    def inputs(content: str) -> str:
        weights.write_text(content)
        given = {"plugins": f"dit@s20:weights={tmp_path}", "model": "var-d16", "weights": "random"}
        prepared = prepare(resolve(Namespace(config=None, **given)), manager())
        return next(one.inputs for name, one in prepared.measured.items() if name.startswith("dit"))

    first = inputs("one")
    assert inputs("other") != first
    assert inputs("one") == first


def test_a_generator_is_alone_and_has_no_plan() -> None:
    with pytest.raises(UserError, match="dit replaces the whole loop, so it must be alone in its row"):
        rows.resolve("dit@s20+scale_window@w1", TINY)
    with pytest.raises(PlanError, match="dit replaces the generation loop, so dit@s20 has no plan"):
        compile_plan(TINY, rows.resolve("dit@s20", TINY).policies)
