"""Images of a row that several processes make: in order, each from the one that was asked, and the same as from one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted import a_run, conduct, options

from varbench.engine.subjects import Answer, Ask
from varbench.measure.calls import Chunk, Reply, Request
from varbench.measure.largest import needed
from varbench.plan import presets
from varbench.plan.trace import foreseen
from varbench.record import Samples, Status
from varbench.record.failure import Failure, RowError
from varbench.run import children, makers
from varbench.run.children import Child
from varbench.run.findings import Findings
from varbench.run.makers import at_once, in_order
from varbench.run.messages import Begin, Begun, Oddities, Scored, Taken
from varbench.run.prepare import prepare
from varbench.run.scorers import Scorers
from varbench.run.task import Task
from varbench.run.tasks import making
from varbench.run.verify import other_traces


@dataclass
class Written:
    """A maker that leaves its name and the first image of what it made."""

    name: str
    fails_at: int | None = None
    told: list[Request] = field(default_factory=list)
    forgotten: int = 0

    def tell(self, request: Request) -> None:
        assert len(self.told) == self.forgotten, "one request at a time"
        self.told.append(request)

    def reply_to(self, request: Request) -> Reply:
        assert self.told.pop() is request
        if request.first == self.fails_at:
            raise RowError(Failure(status=Status.FAILED, reason="as told"))
        assert request.keep is not None
        Path(request.keep).write_text(f"{self.name} {request.first}")
        chunk = Chunk(path="/etc/passwd", sha256="what it says")
        return Reply(row=request.row, images_sha256="", tokens_sha256=None, chunk=chunk)

    def forget(self) -> None:
        self.forgotten += 1


def requests(folder: Path, count: int, processes: int) -> list[Request]:
    return [
        Request(row="a", labels=(0,), seed=0, first=place, keep=str(folder / f"{place % processes}"))
        for place in range(count)
    ]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_replies_come_in_the_order_of_the_requests(processes: int, count: int, tmp_path: Path) -> None:
    """Each with its images: a maker that goes on does not write over those that are looked at."""
    some = [Written(f"maker {place}") for place in range(processes)]
    seen = []
    for request, reply in in_order(some, requests(tmp_path, count, processes), taken=tmp_path / "taken"):
        assert reply.chunk == Chunk(path=str(tmp_path / "taken"), sha256="what it says"), "never a place that it names"
        seen.append(((tmp_path / "taken").read_text(), request.first))
    assert seen == [(f"maker {place % processes} {place}", place) for place in range(count)]
    assert not any(tmp_path.iterdir())


def test_who_is_waited_for_no_more_is_told_so(tmp_path: Path) -> None:
    """A row that fails leaves an answer behind, which shall not be taken for one of the next row's."""
    first, second = Written("first", fails_at=2), Written("second")
    with pytest.raises(RowError, match="as told"):
        list(in_order([first, second], requests(tmp_path, 6, 2), taken=tmp_path / "taken"))
    assert (first.forgotten, second.forgotten) == (0, 1)
    third, fourth = Written("third"), Written("fourth")
    with contextlib.closing(in_order([third, fourth], requests(tmp_path, 6, 2), taken=tmp_path / "taken")) as replies:
        next(replies)
    assert (third.forgotten, fourth.forgotten) == (1, 1)


def test_images_that_are_not_there_fail_the_row(tmp_path: Path) -> None:
    (request,) = requests(tmp_path, 1, 1)
    with pytest.raises(RowError, match="do not lie where they were asked for"):
        list(
            in_order([Written("a")], [replace(request, keep=str(tmp_path / "other"))], taken=tmp_path / "no" / "taken")
        )


def test_there_are_as_many_as_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makers, "cores", lambda: 4)
    run = replace(prepare(options(plugins="variant@d8", weights="random"), name="a"), available_memory=8 << 30)
    run = replace(run, options=replace(run.options, images=2_000))
    assert at_once(run, ("variant@d8", "full_var")) == 4
    need = needed(run.rows["full_var"].plan, batch=run.options.batch, dtype=run.options.dtype)
    found = [
        at_once(replace(run, available_memory=free), ("full_var",)) for free in (None, 3 * need, 7 * need, 11 * need)
    ]
    assert found == [1, 1, 2, 3]
    few = replace(run.options, images=8 * run.options.batch)
    assert at_once(replace(run, options=few), ("full_var",)) == 2, "more would take longer to start than to make them"
    assert at_once(replace(run, options=replace(run.options, device="cuda")), ("full_var",)) == 1
    run.rows["full_var"] = replace(run.rows["full_var"], resolved=replace(run.rows["full_var"].resolved, plan=None))
    assert at_once(run, ("variant@d8", "full_var")) == 1, "nobody says what it needs"
    assert [makers.threads_of_each(count) for count in (1, 2, 3, 8)] == [None, 2, 1, 1]


class ScoresNothing:
    """A scorer that takes all."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def ask(self, message: Any, kind: Any) -> Any:
        self.asked.append(message)
        odd = Oddities(repeated=0, copied=None, undecoded=None)
        known = {
            Begun: Begun(known=0),
            Taken: Taken(images_sha256="", known=0),
            Scored: Scored(quality=None, distance=None, samples=Samples(), weights=(), oddities=odd),
        }
        return known[kind]

    def end(self) -> None:
        pass


def test_a_scored_call_that_left_another_trace_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tells(Written):
        def reply_to(self, request: Request) -> Reply:
            left = "0" * 64 if request.first == 4 else expected
            return replace(super().reply_to(request), trace_sha256=left)

    run = a_run(tmp_path, plugins="variant@d2", batch=2)
    run = replace(run, options=replace(run.options, images=8))
    plan = run.rows["variant@d2"].plan
    assert plan is not None
    expected = foreseen(plan, batch=2, dtype="float32").digest
    monkeypatch.setattr(children, "start", lambda job, **given: ScoresNothing())
    with Scorers(run, folder=tmp_path, log=tmp_path / "log") as scorers:
        seen = scorers.score("variant@d2", [Tells("a")], lambda text: None)
    (found,) = other_traces(run, Findings(seen=seen))
    assert found == f"2 images of variant@d2 left the trace 000000000000, and {expected[:12]} follows from its plan"


def test_who_looks_at_images_has_no_more_threads_than_each_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of one process wait for each other while those of others have the processors: a third of their time."""
    monkeypatch.setattr(makers, "cores", lambda: 2)
    run = a_run(tmp_path, plugins="variant@d2", batch=2)
    run = replace(run, options=replace(run.options, images=8))
    scorer = ScoresNothing()
    monkeypatch.setattr(children, "start", lambda job, **given: scorer)
    with Scorers(run, folder=tmp_path, log=tmp_path / "log") as scorers:
        for some in ([Written("a")], [Written("a"), Written("b")]):
            scorers.score("variant@d2", some, lambda text: None)
    assert [message.threads for message in scorer.asked if isinstance(message, Begin)] == [None, 1]


class Counting:
    """A subject that says how many threads it has, and may take other ones."""

    model = presets.preset("tiny").spec
    device = torch.device("cpu")

    def __init__(self, takes: int | None = None) -> None:
        self.takes = takes

    def prepare(self, ask: Ask) -> None:
        pass

    def make(self, ask: Ask, **given: Any) -> Answer:
        images = torch.full((1, 3, 32, 32), torch.get_num_threads() / 255)
        if self.takes is not None:
            torch.set_num_threads(self.takes)
        return Answer(images=images, tokens=None, trace=None)


def test_a_call_has_the_threads_that_it_is_given_and_what_it_takes_is_seen(tmp_path: Path) -> None:
    before, keep = torch.get_num_threads(), tmp_path / "images.npz"
    request = Request(row="a", labels=(0,), seed=0, keep=str(keep), threads=before + 1)
    try:
        making.answer(Counting(), request)  # type: ignore[arg-type]  # the part of a subject that timing needs
        assert np.load(keep)["images"].max() == before + 1
        assert torch.get_num_threads() == before
        making.answer(Counting(takes=before + 2), request)  # type: ignore[arg-type]  # as above
        assert torch.get_num_threads() == before + 2, "left for whoever compares states"
    finally:
        torch.set_num_threads(before)


def test_two_processes_make_the_images_that_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makers, "cores", lambda: 2)
    found = dict[int, list[str]]()
    for name, free in (("one", None), ("two", 1 << 34)):
        run = a_run(tmp_path / name, plugins="variant@d2", batch=4, dtype="bfloat16")
        run = replace(run, options=replace(run.options, images=32), available_memory=free)
        conducted = conduct(run, tmp_path / name)

        def work(subjects: tuple[Child, ...], names: tuple[str, ...], *, out: Path = tmp_path / name) -> None:
            count = len(subjects)
            asked = [
                Request(
                    row="variant@d2", labels=(1, 2, 3, 4), seed=0, first=4 * place, keep=str(out / str(place % count)),
                    threads=makers.threads_of_each(count),
                )
                for place in range(8)
            ]  # fmt: skip
            found[count] = [reply.images_sha256 for _, reply in in_order(subjects, asked, taken=out / "taken")]

        def lacking(row: str, done: int = len(found)) -> bool:
            return row == "variant@d2" and len(found) == done

        (weights,) = (one for one in run.weight_sets if "variant@d2" in one.rows)
        conducted.in_children(weights, Task(title="images", lacking=lacking, work=work, full_beside=False, helped=True))
        assert conducted.found["variant@d2"].failure is None
    assert len(set(found[1])) == 8
    assert found[1] == found[2]
