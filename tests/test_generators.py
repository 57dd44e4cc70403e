"""Rows that replace the loop: they are measured from outside, and held to what can be seen from there."""

from __future__ import annotations

import dataclasses
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
from varbench.engine.loading import load_pipeline
from varbench.engine.subjects import EngineSubject, GeneratorSubject, Subject
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
        process_state.stir()
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
        name="a", options=dataclasses.replace(OPTIONS, **options), model=TINY, files=None, hashes={}, rows=rows_of_run
    )  # fmt: skip


def test_speed_has_the_columns_that_can_be_seen_from_outside(tmp_path: Path) -> None:
    failures: list[str] = []
    found = speed.time_rows(
        process(Grey()).ask,
        ["test"],
        full=None,
        pace=speed.Pace(batch=4, pairs=3, error=1.0, budget=0.0),
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
    for key in ("state_peak_bytes", "state_after_bytes", "activations_peak_bytes"):
        assert getattr(record.memory, key) is None and record.why(f"memory.{key}")


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
        run = prepare(resolve(Namespace(config=None, **given)), name="a")
        return next(row.inputs for name, row in run.rows.items() if name.startswith("dit"))

    first = inputs("one")
    assert inputs("other") != first
    assert inputs("one") == first


def test_a_generator_is_alone_and_has_no_plan() -> None:
    with pytest.raises(UserError, match="dit replaces the whole loop, so it must be alone in its row"):
        rows.resolve("dit@s20+scale_window@w1", TINY)
    with pytest.raises(PlanError, match="dit replaces the generation loop, so dit@s20 has no plan"):
        compile_plan(TINY, rows.resolve("dit@s20", TINY).policies)
