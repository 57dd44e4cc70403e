"""Rows that replace the loop: they are measured from outside, and held to what can be seen from there."""

from __future__ import annotations

import dataclasses
import json
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from varbench import rows
from varbench.__main__ import main
from varbench.data.shapes import Shapes
from varbench.engine.loading import load_pipeline
from varbench.engine.subjects import EngineSubject, GeneratorSubject, Subject, load_generator
from varbench.errors import PlanError, UserError, WrongOutputError
from varbench.measure import honesty, process_state, speed
from varbench.measure.calls import Reply, Request, balanced_labels
from varbench.measure.overseer import Overseer
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.policies import Generator, Work
from varbench.record import RowIdentity, Status
from varbench.record.failure import RowError
from varbench.record.options import Options
from varbench.run.defaults import resolve
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.looking import look_at
from varbench.run.messages import Begin, Job, ResolvedRow, Take
from varbench.run.prepare import RowInRun, Run, prepare
from varbench.run.reasons import of_exception
from varbench.run.tasks import making, scoring
from varbench.run.timing import timing
from varbench.train import generators
from varbench.train.recipes import RecipeWeights
from varbench.train.states import Checkpoints
from varbench.train.trainer import Budget

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


OPTIONS = Options(
    model="tiny", device="cpu", dtype="float32", top_k=0, top_p=0.0, batch=4, images=0, rounds=1, count=3, budget=0.0
)


class Process:
    """A subject's process without the process: what it is asked, it answers at once."""

    pid = 0

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def ask(self, request: Request) -> Reply:
        process_state.reseed()
        state = process_state.global_state()
        try:
            reply = making.answer(self.subject, request)
        except Exception as error:
            raise RowError(of_exception(error)) from error
        changed = tuple(state.changed())
        state.restore()
        return dataclasses.replace(reply, changed=changed)


def process(generator: Generator) -> Process:
    generator.load(device="cpu", dtype="float32", seed=0)
    return Process(GeneratorSubject(generator=generator, model=TINY, device=torch.device("cpu"), loaded_bytes=4000))


def a_run(**options: Any) -> Run:
    row = ResolvedRow(name="test", trained_generator=True)
    rows_of_run = {"test": RowInRun(resolved=row, identity=RowIdentity(row="test", plugins=()), inputs="")}
    return Run(
        name="a", options=dataclasses.replace(OPTIONS, **options), model=TINY, files=None, hashes={}, rows=rows_of_run, code=""
    )  # fmt: skip


def test_speed_has_the_columns_that_can_be_seen_from_outside(tmp_path: Path) -> None:
    failures: list[str] = []
    found = speed.time_rows(
        process(Grey()).ask,
        ["test"],
        full=None,
        pace=speed.Pace(batch=4, pairs=3, error=lambda row: 1.0, budget=0.0),
        overseer=Overseer(secret="drawn", batch=4, classes=10, calls=3, keep=tmp_path / "images.npz"),
        strain=lambda: None,
        failed=lambda row, error: failures.append(row),
    )
    run = a_run()
    times = timing(run, run.rows["test"], Findings(speed={0: found["test"]}), {})
    assert times is not None and not failures
    columns = {(column.regime, column.column) for column in times.columns}
    assert columns == {(r, c) for r in ("throughput", "latency") for c in ("with_decoder", "end_to_end")}
    assert all(len(column.rounds[0]) == 3 and column.beside is None for column in times.columns)


def test_memory_and_the_statement_of_work() -> None:
    run = a_run()
    looks = look_at(process(Grey()).ask, "test", run)
    assert looks.findings == looks.changed == ()
    record = fill(run, run.rows["test"], Findings(looks=looks), floors={})
    assert record.trace is not None and record.memory is not None
    assert (record.trace.flops, record.trace.steps, record.trace.layer_tokens) == (48.0, 3, None)
    assert record.memory.weights_bytes == 4000
    assert record.memory.torch_allocated_bytes is not None and record.memory.torch_allocated_bytes > 4000
    assert "written out" in record.why("protocol.kernel")
    assert record.memory.state_peak_bytes is not None and record.memory.activations_peak_bytes is not None
    assert record.memory.state_after_bytes is None and record.why("memory.state_after_bytes")


class Remembering(Grey):
    """Fills a cache in ten steps, with passing tensors that are larger than it."""

    said = 0

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        cache = torch.zeros(10, 100_000)
        for step in range(10):
            cache[step] += torch.ones(1_000_000).mul(2).add(1).sum() + torch.ones(2_000_000).sum()
        return super().generate(labels, seed=seed, first_image=first_image)

    def work(self, batch: int) -> Work:
        return Work(flops=0.0, steps=10, cache_peak_bytes=self.said)


@pytest.mark.parametrize(("said", "found"), [(0, True), (4_000_000, False), (None, False)])
def test_state_is_counted_from_outside_and_held_against_what_is_said(said: int | None, found: bool) -> None:
    generator, run = Remembering(), a_run()
    generator.said = said  # type: ignore[assignment]
    looks = look_at(process(generator).ask, "test", run)
    assert looks.held == pytest.approx(4_000_000, rel=0.01)
    assert [finding.startswith("it states 0 bytes of state, and 4,0") for finding in looks.findings] == [True] * found
    record = fill(run, run.rows["test"], Findings(looks=looks), floors={})
    assert record.memory is not None and record.memory.state_peak_bytes == (looks.held,)


def test_the_full_model_is_its_neighbour_in_time(tmp_path: Path) -> None:
    """In its own process, on the full model's weights."""
    options = dataclasses.replace(OPTIONS, weights="random")
    subject, ready = making.load(Job(task="making", options=options, model=TINY, rows=("llamagen", rows.FULL)))
    assert set(ready.plans) == {rows.FULL} and set(ready.parameters) == {"llamagen"}
    found = speed.time_rows(
        Process(subject).ask,
        ["llamagen"],
        full=rows.FULL,
        pace=speed.Pace(batch=2, pairs=1, error=lambda row: 1.0, budget=0.0),
        overseer=Overseer(secret="drawn", batch=2, classes=10, calls=1, keep=tmp_path / "images.npz"),
        strain=lambda: None,
        failed=lambda row, error: pytest.fail(str(error)),
    )
    run = a_run()
    times = timing(run, run.rows["test"], Findings(speed={0: found["llamagen"]}), {})
    assert times is not None
    beside = {column.column for column in times.columns if column.beside is not None}
    assert beside == {"with_decoder", "end_to_end"}
    alone, _ = making.load(Job(task="making", options=options, model=TINY, rows=("llamagen",)))
    assert subject.weight_bytes("llamagen") == alone.weight_bytes("llamagen") < subject.weight_bytes(rows.FULL)


def test_a_look_at_a_row_that_has_a_plan_sees_its_kernel() -> None:
    subject = EngineSubject(pipe=load_pipeline("tiny", random=True), cfg=1.5, top_k=0, top_p=0.0)
    labels = (0,)
    reply = Process(subject).ask(Request(row="variant@d2", labels=labels, seed=0, look="memory"))
    assert reply.kernel == "scaled_dot_product_flash_attention_for_cpu"
    plan, _ = subject.pipe.compile("variant@d2")
    assert reply.trace is not None
    assert honesty.against_plan(plan, reply.trace, batch=1, dtype="float32") == []


def test_images_of_a_generator_are_scored(tmp_path: Path) -> None:
    ask = process(Grey()).ask
    job = Job(task="scoring", options=dataclasses.replace(OPTIONS, images=64), model=TINY)
    scorer = scoring.Scorer(job, SimpleNamespace(alive=lambda text="": None))  # type: ignore[arg-type]
    scorer.begin(Begin(row="test", full=False))
    for first in range(0, 64, 24):
        labels = balanced_labels(min(24, 64 - first), 10, first=first)
        reply = ask(Request(row="test", labels=labels, seed=0, first=first, keep=str(tmp_path / "chunk.npz")))
        assert reply.chunk is not None
        scorer.take(Take(chunk=reply.chunk, labels=labels))
    found = scorer.finish(64)
    assert found.samples.tokens_sha256 is None
    assert found.samples.labels[:11] == (*range(10), 0)
    assert found.quality is not None
    scores = {score.name: score for score in found.quality.scores}
    assert scores["FD-shapes"].n == 64
    assert (scores["FD-shapes"].value or 0) > 10


def test_images_that_are_not_those_that_were_announced_are_refused(tmp_path: Path) -> None:
    labels = balanced_labels(24, 10)
    reply = process(Grey()).ask(Request(row="test", labels=labels, seed=0, keep=str(tmp_path / "chunk.npz")))
    assert reply.chunk is not None
    job = Job(task="scoring", options=dataclasses.replace(OPTIONS, images=24), model=TINY)
    scorer = scoring.Scorer(job, SimpleNamespace(alive=lambda text="": None))  # type: ignore[arg-type]
    scorer.begin(Begin(row="test", full=False))
    with pytest.raises(WrongOutputError, match="24, 3, 32, 32"):
        scorer.take(Take(chunk=reply.chunk, labels=labels[1:]))
    np.savez(reply.chunk.path, images=np.zeros((24, 3, 32, 32), np.uint8))
    with pytest.raises(WrongOutputError, match="have the hash"):
        scorer.take(Take(chunk=reply.chunk, labels=labels))


def test_what_is_wrong_with_a_generator_is_found() -> None:
    looks = look_at(process(Dice()).ask, "test", a_run())
    assert looks.findings == ("the same call gave other images",)
    assert looks.changed == ("torch random state",)
    for request in (
        Request(row="test", labels=(0, 1), seed=0),
        Request(row="test", labels=(0, 1), seed=0, look="memory"),
    ):
        with pytest.raises(RowError) as error:
            process(TooFew()).ask(request)
        assert error.value.failure.status is Status.WRONG_OUTPUT


def test_files_that_a_parameter_names_count_by_content(tmp_path: Path) -> None:
    """Other weights under the same name are another input, so a resumed run measures the row again."""
    (tmp_path / "model_index.json").write_text("{}")
    weights = tmp_path / "transformer" / "weights"
    weights.parent.mkdir()

    def inputs(content: str) -> str:
        weights.write_text(content)
        given = {"plugins": f"dit@s20:weights={tmp_path}", "model": "var-d16", "weights": "random"}
        (options,) = resolve(Namespace(config=None, **given))
        run = prepare(options, name="a")
        return next(row.inputs for name, row in run.rows.items() if name.startswith("dit"))

    first = inputs("one")
    assert inputs("other") != first
    assert inputs("one") == first


def test_a_generator_is_alone_and_has_no_plan() -> None:
    with pytest.raises(UserError, match="dit replaces the whole loop, so it must be alone in its row"):
        rows.resolve("dit@s20+scale_window@w1", TINY)
    with pytest.raises(PlanError, match="dit replaces the generation loop, so dit@s20 has no plan"):
        compile_plan(TINY, rows.resolve("dit@s20", TINY).policies)


BUDGET = Budget(steps=6, peak_rate=1e-3, batch=4, images=16, looks=1, dtype="float32")


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> rows.Row:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(generators, "LOOKED_AT", 32)
    return rows.resolve("llamagen", TINY)


def weights_of(row: rows.Row, **changes: Any) -> RecipeWeights:
    shipped = presets.shipped_files("tiny")["vae"]
    budget = dataclasses.replace(BUDGET, **changes)
    return generators.generator_weights(row, vae=shipped, data=Shapes(side=32), budget=budget)


def test_its_network_is_trained_once_and_then_used(row: rows.Row) -> None:
    first = weights_of(row)
    again = weights_of(rows.resolve("llamagen:cfg=2", TINY))
    assert (first.origin, again.origin) == ("here", "cache") and first.files == again.files
    assert weights_of(row, seed=1).files != first.files
    assert first.record is not None
    stage = first.record["stages"]["train"]
    assert [look["step"] for look in stage["evaluations"]] == [0, 6]
    assert stage["evaluations"][1]["value"] < stage["evaluations"][0]["value"]
    made = []
    vae, path = presets.shipped_files("tiny")["vae"], first.files[generators.PART]
    for weights in (path, None):
        owned = rows.resolve("llamagen", TINY).policies.generator
        assert owned is not None
        subject = load_generator(
            owned.policy, model=TINY, device=torch.device("cpu"), dtype="float32", seed=0, vae=vae, weights=weights
        )
        made.append(subject.generator.generate([1], seed=0, first_image=0))
    assert not torch.equal(*made)


def test_an_interrupted_training_goes_on_to_the_same_weights(row: rows.Row, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights_of(row).files[generators.PART].read_bytes()
    (weights_of(row).files[generators.PART].parent / "record.json").unlink()
    seen: list[int] = []
    policy = type(generators.trained_generator(row))
    losses = policy.losses  # type: ignore[union-attr]

    def killed(self: Any, network: Any, examples: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(labels))
        if len(seen) == 5:
            raise MemoryError
        return losses(self, network, examples, labels)

    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    monkeypatch.setattr(policy, "losses", killed)
    with pytest.raises(MemoryError):
        weights_of(row)
    steps = len(seen)
    monkeypatch.setattr(policy, "losses", lambda self, *given: seen.append(0) or losses(self, *given))
    again = weights_of(row)
    assert len(seen) < 2 * steps, "it began again"
    assert again.origin == "here" and _weights(again.files[generators.PART].read_bytes()) == _weights(whole)


def _weights(file: bytes) -> bytes:
    """Without the header, which says how long it took."""
    return file[8 + int.from_bytes(file[:8], "little") :]


def test_plan_shows_what_it_states(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llamagen@XXL384", "--model", "var-d30", "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)[-1]
    assert stated["row"] == "llamagen@XXL384" and stated["stated"]["steps"] == 576
    assert stated["stated"]["flops"] == pytest.approx(64 * 2 * 2 * 821.8e9, rel=0.001)
    assert main(["plan", "llamagen@XXL384,full_var", "--model", "var-d30"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"llamagen@XXL384 +210.370 +1.15x +36.488 +576 +1,410.97", shown), shown
    assert "FID 2.34 [primary" in shown and "full_var" in shown


def test_weights_to_start_from_are_refused_where_a_training_begins_from_nothing() -> None:
    assert main(["train", "llamagen", "--weights", "x.pth"]) == 2
