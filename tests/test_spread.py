"""A run spread over devices: what is cut up, what happens when one is lost, and that images come out the same wherever made."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import CommandLine, runs
from scripted import a_run, conduct, options, scripted

from varbench.base import display
from varbench.base.display import Bar, Display
from varbench.base.places import full_images
from varbench.base.whole_files import write_whole
from varbench.commands.run import _prepared as prepared
from varbench.data.shapes import Shapes
from varbench.errors import UserError
from varbench.measure.environment import environment
from varbench.quality.images import write_samples_npz
from varbench.record import Record, Status, load_records, to_json
from varbench.record.option_forms import as_arguments
from varbench.rows import FULL, UPSTREAM
from varbench.run import inputs
from varbench.run.conduct import PARTS
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.identity import code_hash
from varbench.run.kept_parts import KeptParts
from varbench.run.messages import GROUP, Ahead, Inspected
from varbench.run.prepare import Run
from varbench.run.resume import complete_records
from varbench.run.session import ALL_FAILED, INTERRUPTED
from varbench.run.spread import on_ray
from varbench.run.spread import portion as portion_module
from varbench.run.spread.dispatch import Broken, Dispatch, Ended, Lost, Place
from varbench.run.spread.kinds import DeviceThere, device_here, kind_of
from varbench.run.spread.on_ray import RayCluster
from varbench.run.spread.portion import FULL_IMAGES, Detail, Errand, Found, Full, Left, News, Note, carry_out
from varbench.run.spread.portions import Portion, portions
from varbench.show.forecast import forecast


@pytest.fixture(scope="module")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return a_run(tmp_path_factory.mktemp("out"), plugins="variant@d8,variant@d2,scale_window@w1")


@pytest.fixture(scope="module")
def scored_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("out")
    write_samples_npz(out / "reference.npz", Shapes(side=32).images(range(100)))
    return a_run(
        out, weights=None, plugins=SOME, reference=str(out / "reference.npz"), images=2 * GROUP + 8, batch=8, rounds=1, count=1,
        fresh=True,
    )  # fmt: skip


SOME = "variant@untrained/d2"
"""A row that takes little time on weights that are there."""


# What is cut up


@pytest.mark.parametrize("places", [1, 2, 3, 8])
def test_every_row_is_done_once_and_after_the_full_model(random_run: Run, places: int) -> None:
    found = portions(random_run, places=places)
    assert sorted(name for one in found for name in one.rows) == sorted(random_run.rows)
    whole = next(one for one in found if FULL in one.rows)
    assert all(whole in one.after for one in found if one is not whole)
    assert len(found) >= min(places, len(random_run.rows))


@pytest.mark.parametrize("places", [2, 3])
def test_images_are_cut_where_a_scorers_groups_end(scored_run: Run, places: int) -> None:
    run = replace(scored_run, options=replace(scored_run.options, images=9 * GROUP + 7))
    parts = [one.images for one in portions(run, places=places) if one.images is not None and one.rows == (FULL,)]
    assert len(parts) == places
    assert parts[0][0] == 0 and parts[-1][1] == 9 * GROUP
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(parts))
    assert all(end % GROUP == 0 for _, end in parts)


def test_what_is_done_is_not_done_again(random_run: Run) -> None:
    assert {name for one in portions(random_run, places=2, done={FULL, "variant@d8"}) for name in one.rows} == {
        "full_var:accounting=upstream", "variant@d2", "scale_window@w1",
    }  # fmt: skip


def test_what_a_run_trains_is_trained_on_one_device(random_run: Run) -> None:
    options = replace(random_run.options, train=True)
    rows = {
        name: replace(row, resolved=replace(row.resolved, weight_set="variant@progressive"))
        if name.startswith("variant")
        else row
        for name, row in random_run.rows.items()
    }
    found = portions(replace(random_run, options=options, rows=rows), places=8)
    assert ("variant@d8", "variant@d2") in [one.rows for one in found]


# Devices that are scripted


@dataclass
class Devices:
    """Each errand ends at once, in a record of each of its rows, unless it is told otherwise."""

    kinds: dict[str, str] = field(default_factory=lambda: {"a": "card", "b": "card"})
    says: Callable[[Place, Errand], Sequence[News | Ended | Lost | Broken] | None] = lambda place, errand: None
    begun: list[tuple[str, Errand]] = field(default_factory=list)
    heard: list[tuple[Place, News | Ended | Lost | Broken]] = field(default_factory=list)

    def places(self) -> Sequence[Place]:
        return [Place(name=name, kind=kind) for name, kind in tuple(self.kinds.items())]

    def begin(self, place: Place, errand: Errand) -> None:
        self.begun.append((place.name, errand))
        said = self.says(place, errand)
        if said is None:
            said = [*self.records(errand), Ended()]
        if any(isinstance(one, Lost) for one in said):
            del self.kinds[place.name]
        self.heard += [(place, one) for one in said]

    @staticmethod
    def records(errand: Errand) -> Iterator[Found]:
        for name in errand.portion.rows if errand.portion.images is None else ():
            record = fill(errand.run, errand.run.rows[name], Findings(), floors={})
            yield Found(record=replace(record, status=Status.COMPLETE))

    def news(self, *, seconds: float) -> Iterable[tuple[Place, News | Ended | Lost | Broken]]:
        heard, self.heard = self.heard, []
        time.sleep(0 if heard else 0.01)
        return heard

    def close(self) -> None: ...


def dispatched(run: Run, out: Path, devices: Devices, **given: Any) -> dict[str, Record]:
    dispatch = Dispatch(run=run, out=out, display=Display({}), cluster=devices, wait=0.2, **given)
    dispatch.everything()
    written = {record.row.row: record for record in load_records([out]).records}
    known = {record.row.row: to_json(record) for record in dispatch.records()}
    assert known == {name: to_json(record) for name, record in written.items() if name not in dispatch.done}
    return written


def test_rows_go_to_all_devices_and_their_records_come_back(random_run: Run, tmp_path: Path) -> None:
    devices = Devices()
    found = dispatched(random_run, tmp_path, devices)
    assert {name: record.status for name, record in found.items()} == dict.fromkeys(random_run.rows, Status.COMPLETE)
    assert {name for name, _ in devices.begun} == {"a", "b"}
    (first, *others) = [errand for _, errand in devices.begun]
    assert FULL in first.portion.rows and first.full_record is None
    assert all(errand.full_record and to_json(errand.full_record) == to_json(found[FULL]) for errand in others)


def test_a_lost_devices_rows_begin_again_once_and_say_so(random_run: Run, tmp_path: Path, capsys: Any) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        return [Lost(reason="the node died")] if place.name == "b" else None

    devices = Devices(says=says)
    found = dispatched(random_run, tmp_path, devices)
    assert all(record.status is Status.COMPLETE for record in found.values())
    lost = next(errand.portion for name, errand in devices.begun if name == "b")
    assert len(lost.rows) == 2
    again = {
        name for name, record in found.items() if any("begun again: b was lost" in w.text for w in record.warnings)
    }
    assert again == set(lost.rows)
    begun = [name for _, errand in devices.begun for name in errand.portion.rows]
    assert sorted(begun) == sorted([*random_run.rows, *lost.rows])
    assert "begins again elsewhere" in capsys.readouterr().err


def test_rows_that_lose_two_devices_fail_and_the_others_do_not(random_run: Run, tmp_path: Path) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        return [Lost(reason="no memory")] if "scale_window@w1" in errand.portion.rows else None

    devices = Devices(kinds=dict.fromkeys("abcd", "card"), says=says)
    found = dispatched(random_run, tmp_path, devices)
    failed = {name: record.reason for name, record in found.items() if record.status is Status.FAILED}
    assert set(failed) == {"scale_window@w1"}
    assert (failed["scale_window@w1"] or "").count("was lost (no memory)") == 2


def test_of_a_lost_portion_what_is_complete_is_not_done_again(random_run: Run, tmp_path: Path) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        return [next(Devices.records(errand)), Lost(reason="gone")] if place.name == "b" else None

    devices = Devices(says=says)
    found = dispatched(random_run, tmp_path, devices)
    assert all(record.status is Status.COMPLETE for record in found.values())
    first, *others = next(errand.portion for name, errand in devices.begun if name == "b").rows
    begun = [name for _, errand in devices.begun for name in errand.portion.rows]
    assert [begun.count(name) for name in (first, *others)] == [1, 2]


def test_what_cannot_be_done_is_not_tried_again(random_run: Run, tmp_path: Path) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        return [Broken(reason="no such file")] if "variant@d2" in errand.portion.rows else None

    devices = Devices(kinds=dict.fromkeys("abcdef", "card"), says=says)
    found = dispatched(random_run, tmp_path, devices)
    assert (found["variant@d2"].status, found["variant@d2"].reason) == (Status.FAILED, "no such file")
    assert sum("variant@d2" in errand.portion.rows for _, errand in devices.begun) == 1


def test_kinds_are_not_mixed(random_run: Run, tmp_path: Path, capsys: Any) -> None:
    devices = Devices(kinds={"a": "H100", "b": "L20", "c": "H100"})
    dispatched(random_run, tmp_path, devices)
    assert {name for name, _ in devices.begun} == {"a", "c"}
    assert "all rows run on H100, which there are most of; left alone: 1 of L20" in capsys.readouterr().err


@pytest.mark.parametrize("there", [{"a": "H100", "b": "H100", "c": "L20"}, {"a": "H100", "b": "H100"}])
def test_a_run_goes_on_on_the_kind_that_its_rows_were_measured_on(
    random_run: Run, tmp_path: Path, capsys: Any, there: dict[str, str]
) -> None:
    first = fill(random_run, random_run.rows[FULL], Findings(), floors={})
    done = {FULL: replace(first, environment=replace(first.environment, device="L20"))}
    devices = Devices(kinds=dict(there))
    found = dispatched(random_run, tmp_path, devices, done=done)
    assert {name for name, _ in devices.begun} == {name for name, kind in there.items() if kind == "L20"}
    assert "all rows run on L20, as those that are done did; left alone: 2 of H100" in capsys.readouterr().err
    if "c" not in there:
        assert len(found) == len(random_run.rows) - 1
        assert all("no L20 is left to run it on" in (record.reason or "") for record in found.values())


@pytest.mark.parametrize(
    ("asked", "kind"),
    [("h100", "H100 NVL"), ("l40s", "L40S"), ("L40", "L40"), ("l4", "L40S"), ("H100 pcie", "H100 PCIe")],
)
def test_rows_run_on_the_kind_that_is_asked_for(
    random_run: Run, tmp_path: Path, capsys: Any, asked: str, kind: str
) -> None:
    """Of those that have the words in their names the one of which there are most; a whole name is itself."""
    kinds = {
        "a": "L40",
        "b": "L40S",
        "c": "L40S",
        "d": "H100 NVL",
        "e": "H100 NVL",
        "f": "H100 PCIe",
        **dict.fromkeys("ghi", "A"),
    }
    devices = Devices(kinds=dict(kinds))
    run = replace(random_run, options=replace(random_run.options, kind=asked))
    dispatched(run, tmp_path, devices)
    assert {name for name, _ in devices.begun} == {name for name, one in kinds.items() if one == kind}
    assert f"all rows run on {kind}, as was asked for; left alone: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (False, "--kind L20: no such device is free in the cluster, which has 1 of H100, 1 of A100"),
        (True, "--kind L20: the rows that are done ran on H100; leave it out, or choose another --out"),
    ],
)
def test_a_kind_that_is_not_there_or_not_that_of_the_rows_that_are_done_is_refused_and_nothing_written(
    random_run: Run, tmp_path: Path, kept: bool, said: str
) -> None:
    first = fill(random_run, random_run.rows[FULL], Findings(), floors={})
    done = {FULL: replace(first, environment=replace(first.environment, device="H100"))} if kept else {}
    devices = Devices(kinds={"a": "H100", "b": "A100", **({"c": "L20"} if kept else {})})
    run = replace(random_run, options=replace(random_run.options, kind="L20"))
    with pytest.raises(UserError, match=said):
        dispatched(run, tmp_path, devices, done=done)
    assert not devices.begun and not [*tmp_path.iterdir()]


def test_what_does_not_fit_is_said_by_the_memory_of_the_devices_that_the_rows_run_on(
    random_run: Run, tmp_path: Path, capsys: Any
) -> None:
    """The least of them; of devices whose memory nobody knows nothing is said, whatever this machine has."""

    def said(**free: int | None) -> list[str]:
        places = [Place(name=name, kind="small" if name in "ab" else "large", free=has) for name, has in free.items()]
        devices = Devices()
        cluster = SimpleNamespace(places=lambda: places, begin=devices.begin, news=devices.news, close=devices.close)
        done = Dispatch(run=random_run, out=tmp_path, display=Display({}), cluster=cluster)
        done.everything()
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("warning", "next"))]

    assert not said(a=None, b=None, c=2**20)
    assert not said(a=2**40, b=2**40, c=2**20)
    words = said(a=2**40, b=2**20, c=2**40)
    assert len(words) == len(random_run.rows) and all(" and of 0.000977 GiB " in line for line in words)


def test_with_no_device_of_the_kind_left_rows_are_refused_and_not_sent_to_another(
    random_run: Run, tmp_path: Path
) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        if FULL in errand.portion.rows:
            return None
        return [Lost(reason="gone")]

    devices = Devices(kinds={"a": "H100", "b": "H100", "c": "L20"}, says=says)
    found = dispatched(random_run, tmp_path, devices)
    assert found[FULL].status is Status.COMPLETE
    assert "c" not in {name for name, _ in devices.begun}
    reasons = [record.reason or "" for record in found.values() if record.status is Status.FAILED]
    assert any("no H100 is left to run it on" in reason for reason in reasons)


def test_one_that_comes_later_takes_over(random_run: Run, tmp_path: Path) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        if place.name == "a" and FULL not in errand.portion.rows:
            threading.Timer(0.05, lambda: devices.kinds.update(late="H100")).start()
            return [Lost(reason="gone")]
        return None

    devices = Devices(kinds={"a": "H100"}, says=says)
    found = dispatched(random_run, tmp_path, devices)
    assert all(record.status is Status.COMPLETE for record in found.values())


def test_what_one_device_left_goes_to_the_one_that_goes_on_and_nowhere_else(scored_run: Run, tmp_path: Path) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        if errand.portion.images is None:
            return None
        return [*group(errand.run, FULL, errand.portion.images[0]), Ended()]

    devices = Devices(says=says)
    dispatched(scored_run, tmp_path, devices)
    both = files(*group(scored_run, FULL, 0), *group(scored_run, FULL, GROUP))
    assert {errand.portion: errand.files for _, errand in devices.begun if errand.files} == {whole(scored_run): both}
    assert not list((tmp_path / PARTS).rglob("*.npz")), "once a row is complete, nothing of its images stays"


def group(run: Run, name: str, first: int) -> list[Left]:
    """What is handed over of a group of images."""
    folder = KeptParts(run, Path(PARTS)).groups_path(name, trained=None)
    names = (f"{first:08d}.npz", f"counted-{first:08d}.json")
    return [Left(place=str(folder / one), content=f"{name} {one}".encode()) for one in names]


def files(*left: Left) -> dict[str, bytes]:
    return {one.place: one.content for one in left}


def whole(run: Run) -> Portion:
    """The portion that finishes the full model, whose images two devices made."""
    return next(one for one in portions(run, places=2) if one.rows == (FULL,) and one.images is None)


def test_what_lies_there_of_images_goes_to_whoever_goes_on_on_the_same_kind(scored_run: Run, tmp_path: Path) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        if place.name == "b":
            return [Lost(reason="gone")]
        if errand.portion.images == (0, GROUP):
            return [*group(errand.run, FULL, 0), Ended()]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dispatched(scored_run, tmp_path, Devices(says=says))
    forged = group(scored_run, FULL, GROUP)
    for one in forged:
        next((tmp_path / PARTS).rglob("*.groups")).joinpath(Path(one.place).name).write_bytes(one.content)

    def sent(kind: str, run: Run) -> dict[tuple[int, int] | None, Mapping[str, bytes]]:
        devices = Devices(kinds={"a": kind, "b": kind}, says=lambda place, errand: [Broken(reason="enough")])
        dispatched(run, tmp_path, devices)
        return {errand.portion.images: errand.files for _, errand in devices.begun if errand.portion.rows == (FULL,)}

    later = replace(scored_run, began=time.time_ns())
    mine = files(*group(scored_run, FULL, 0))
    assert sent("card", later) == {(0, GROUP): mine, (GROUP, 2 * GROUP): files(*forged), None: mine | files(*forged)}
    assert not any(sent("card", scored_run).values()), "what was written since the run began is nobody's"
    assert not any(sent("other", later).values())


def test_the_bar_shows_how_far_all_devices_are_and_each_row_is_told_as_it_is_finished(
    random_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Drawn:
        console: Any
        states: list[dict[str, Any]] = field(default_factory=list)

        def add_task(self, title: str, **state: Any) -> int:
            return 0

        def update(self, task: int, **state: Any) -> None:
            self.states.append(state)

    def says(place: Place, errand: Errand) -> Sequence[Any]:
        clock.now += 60  # each portion takes a minute, whoever does it
        told = [Detail(text="round 1"), *(Note(text=f"{name} is finished") for name in errand.portion.rows)]
        return [*told, *Devices.records(errand), Ended()]

    clock, printed = SimpleNamespace(now=0.0), list[str]()
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: clock.now))
    bar = Drawn(console=SimpleNamespace(print=lambda text, **how: printed.append(text)))
    shown = Display({}, screen=Bar(bar))
    Dispatch(run=random_run, out=tmp_path, display=shown, cluster=Devices(says=says)).everything()
    after_each = [state for state in bar.states if not state["description"]]
    assert [state["parts"] for state in after_each] == ["0/3", "1/3", "1/3", "1/3", "2/3", "3/3"]
    assert [state["left"] for state in after_each][:2] == ["", "about 2 min left"]
    assert (after_each[1]["completed"], after_each[-1]["completed"]) == (pytest.approx(1 / 3), 1)
    details = [state for state in bar.states if state["description"]]
    assert {state["description"] for state in details} == {"a: round 1", "b: round 1"}
    assert details[-1]["left"] == "about 90 s left", "what a device is at says nothing of the time"
    begun = [line for line in printed if line.startswith("[")]
    assert begun[0] == f"[0/3, 60 s] {FULL} on a"
    assert len(begun) == 3 and all("[1/3, " in line and "about " in line for line in begun[1:])
    assert [line for line in printed if line.endswith("finished")] == [
        f"{name} is finished" for name in random_run.rows
    ]


def test_the_full_models_images_reach_all_other_rows_and_a_run_that_goes_on(random_run: Run, tmp_path: Path) -> None:
    def says(place: Place, errand: Errand) -> Sequence[Any] | None:
        known = [Left(place=FULL_IMAGES, content=b"images"), Full(findings=Findings(started="then"))]
        return [*known, *Devices.records(errand), Ended()] if FULL in errand.portion.rows else None

    def sent(devices: Devices) -> list[tuple[bytes | None, str | None]]:
        others = (errand for _, errand in devices.begun if FULL not in errand.portion.rows)
        return [(one.files.get(FULL_IMAGES), one.full and one.full.started) for one in others]

    first = Devices(says=says)
    done = {FULL: dispatched(random_run, tmp_path, first)[FULL]}
    assert sent(first) == 2 * [(b"images", "then")]
    forged, again = (Devices(kinds=dict.fromkeys("ab", kind_of(done[FULL].environment))) for _ in range(2))
    dispatched(random_run, tmp_path, forged, done=done)
    assert sent(forged) == 2 * [(None, None)], "what was written since the run began is nobody's"
    dispatched(replace(random_run, began=time.time_ns()), tmp_path, again, done=done)
    assert sent(again) == 2 * [(b"images", None)]


def test_a_portion_ends_with_the_full_models_images_and_another_begins_with_them(
    random_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = full_images(random_run.rows[FULL].inputs)
    first, second, _ = portions(random_run, places=2)
    with scripted(monkeypatch):
        write_whole(place, b"made")
        told = [*carry_out(Errand(run=random_run, portion=first))]
        (full,) = [one for one in told if isinstance(one, Full)]
        assert told[-1] == Left(place=FULL_IMAGES, content=b"made")
        sent = Errand(run=random_run, portion=second, files={FULL_IMAGES: b"sent"}, full=full.findings)
        records = [one.record for one in carry_out(sent) if isinstance(one, Found)]
    assert {record.row.row for record in records if record.status is Status.COMPLETE} >= {*second.rows}
    assert place.read_bytes() == b"sent"


# Portions in processes of this machine


class DiedError(BaseException):
    """What no worker survives."""


@dataclass(kw_only=True)
class Here(Devices):
    """Workers that are one after the other this machine, and know of each other only what they are sent."""

    caches: Path
    """A folder for each worker's own."""
    dies_at: str | None = None
    said: list[str] = field(default_factory=list)

    def begin(self, place: Place, errand: Errand) -> None:
        def shows(home: Any, title: str, lines: Sequence[str], standing: Any) -> None:
            self.said += lines
            if self.dies_at in lines:
                raise DiedError

        self.begun.append((place.name, errand))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(self.caches / place.name))
            patch.setattr(portion_module._AtHome, "shows", shows)
            try:
                for one in carry_out(errand):
                    self.heard.append((place, one))
                self.heard.append((place, Ended()))
            except DiedError:
                self.heard.append((place, Lost(reason="died")))
                del self.kinds[place.name]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def alone(scored_run: Run, caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run on this machine."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(caches / "alone"))
        conduct(scored_run, out).everything()
    return out


def with_the_full_model_done(alone: Path, out: Path) -> Path:
    """A run's folder with what is complete of it, as far as it came."""
    out.mkdir()
    for path in alone.glob("*.json"):
        if FULL in path.name:
            shutil.copy(path, out)
    return out


def assert_same_images(alone: Path, found: dict[str, Record]) -> None:
    """Whole groups are looked at wherever they are made: scores are not only equal to 1e-6, but bit for bit."""
    theirs = {record.row.row: record for record in load_records([alone]).records}
    assert found.keys() == theirs.keys()
    for name, one in found.items():
        assert one.status is Status.COMPLETE, one.reason
        assert one.inputs_hash == theirs[name].inputs_hash
        assert (one.quality is None) == (name == UPSTREAM)
        assert one.quality is None or one.quality.scores == theirs[name].quality.scores
        assert one.samples == theirs[name].samples  # with the hash of their tokens
        assert one.distance == theirs[name].distance


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_on_other_devices_and_makes_what_was_left(
    scored_run: Run, alone: Path, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches / "alone"))
    out = with_the_full_model_done(alone, tmp_path / "out")
    kind = kind_of(load_records([out]).records[0].environment)

    def go_on(places: str, **given: Any) -> tuple[Here, dict[str, Record]]:
        run = replace(scored_run, began=time.time_ns())
        workers = Here(kinds=dict.fromkeys(places, kind), caches=caches, **given)
        return workers, dispatched(run, out, workers, done=complete_records(run, out))

    first, lost = go_on("a", dies_at=f"{SOME}, {GROUP + 8} of {2 * GROUP + 8} images")
    assert f"no {kind} is left" in (lost[SOME].reason or "")
    again, found = go_on("bc")
    assert [str(errand.portion) for _, errand in first.begun] == [SOME]
    assert [str(errand.portion) for _, errand in again.begun] == [
        f"{SOME}, images 0 to 255", f"{SOME}, images 256 to 511", SOME,
    ]  # fmt: skip
    assert_same_images(alone, found)
    made = Counter(text.partition(" of ")[0] for text in (*first.said, *again.said) if text.endswith(" images"))
    batches = {f"{SOME}, {until}": 1 for until in range(8, 2 * GROUP + 9, 8)}
    assert made == batches | {f"{SOME}, {GROUP + 8}": 2}, "only the group that was being made is made anew"


# Ray

CARD = DeviceThere(kind="card", free=5)


@dataclass
class ScriptedRay:
    """A cluster whose workers say what they are, or cannot, or not yet, as they are told to."""

    says: dict[str, tuple[DeviceThere, str] | Exception | None]
    started: list[str] = field(default_factory=list)
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=RuntimeError))
    gpus: int = 0

    def remote(self, worker: type) -> Any:
        return SimpleNamespace(options=lambda name: SimpleNamespace(remote=lambda: self.start(name)))

    def start(self, name: str) -> Any:
        self.started.append(name)
        return SimpleNamespace(known=SimpleNamespace(remote=lambda gpu: name))

    def wait(self, asked: list[str], **how: Any) -> tuple[list[str], list[str]]:
        return [name for name in asked if self.says[name] is not None], []

    def get(self, name: str) -> tuple[DeviceThere, str] | None:
        if isinstance(said := self.says[name], Exception):
            raise said
        return said

    def nodes(self) -> list[str]:
        return [*self.says]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0} | ({"GPU": float(self.gpus)} if self.gpus else {})

    def kill(self, worker: Any) -> None: ...


def a_cluster(
    monkeypatch: pytest.MonkeyPatch, ray: ScriptedRay, notes: list[str], *, device: str = "cpu"
) -> RayCluster:
    monkeypatch.setattr(on_ray, "_ray", lambda: ray)
    monkeypatch.setattr(on_ray, "_connect", lambda *given: None)
    monkeypatch.setattr(on_ray, "time", SimpleNamespace(monotonic=itertools.count(step=2).__next__))
    monkeypatch.setattr(RayCluster, "_slots", lambda self: {name: {"name": name} for name in ray.says})
    return RayCluster(options(executor="ray", device=device), note=notes.append)


BARE = RuntimeError("The actor could not be made:\n  ...\nModuleNotFoundError: No module named 'varbench'\n")


def test_a_place_whose_worker_cannot_start_is_left_out_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, notes = ScriptedRay({"bare": BARE, "fine": (CARD, code_hash()), "older": (CARD, "0" * 64)}), list[str]()
    cluster = a_cluster(monkeypatch, ray, notes)
    for _ in range(3):
        assert cluster.places() == (Place(name="fine", kind="card", free=5),)
    assert ray.started == ["bare", "fine", "older"], "nobody tries it again"
    bare, older = notes
    assert bare == "  bare is left out: ModuleNotFoundError: No module named 'varbench'"
    assert "older is left out: its code of varbench has the hash 000000000000, here it is " in older


def test_a_driver_without_a_gpu_says_who_takes_those_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run's default device is, the driver's machine decides."""
    notes: list[str] = []
    for gpus, device in ((2, "cpu"), (0, "cpu"), (2, "cuda")):
        a_cluster(monkeypatch, ScriptedRay({"fine": (CARD, code_hash())}, gpus=gpus), notes, device=device)
    assert notes == ["  rows run on processors; GPUs of the cluster, 2 of them, are for --device cuda"]


def test_with_no_place_left_the_run_ends_with_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="can be used: bare: ModuleNotFoundError: No module named 'varbench'"):
        a_cluster(monkeypatch, ScriptedRay({"bare": BARE}), [])


def test_devices_that_are_busy_are_not_waited_for_once_one_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="no processor of the cluster was free within 120 s: 1 nodes, of which 1 have any"
    ):
        a_cluster(monkeypatch, ScriptedRay({"busy": None}), [])
    ray = ScriptedRay({"busy": None, "fine": (CARD, code_hash())})
    cluster = a_cluster(monkeypatch, ray, [])
    assert [place.name for place in cluster.places()] == ["fine"]
    ray.says["busy"] = (CARD, code_hash())
    assert [place.name for place in cluster.places()] == ["fine", "busy"]


TORCH = """
import os
from types import SimpleNamespace
def device(name):
    return name
def get_num_threads():
    return 1
def known(device):
    # CUDA counts boards by what CUDA_VISIBLE_DEVICES says of them, and puts the fastest first.
    names = {"GPU-8932f937-d72c-4106-c12f-20bd9faed9f6": "NVIDIA L20", "0": "NVIDIA H100", "1": "NVIDIA L20"}
    return SimpleNamespace(name=names[os.environ["CUDA_VISIBLE_DEVICES"]])
cuda = SimpleNamespace(get_device_properties=known, mem_get_info=lambda device: (2**20, 2**21))
"""


def test_a_worker_is_of_the_kind_that_torch_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the records of its rows are, whether its board is named by number or by UUID."""
    (tmp_path / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for visible, kind in (("0", "NVIDIA H100"), ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "NVIDIA L20")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert device_here("cuda") == DeviceThere(kind=kind, free=2**20)
    here = device_here("cpu")
    assert here.kind == kind_of(environment("cpu", threads=1)) and here.free is not None and here.free > 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(RuntimeError, match="torch cannot use cuda there; KeyError: '7'"):
        device_here("cuda")


NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
small = {"object_store_memory": 100 * 2**20}
for variables in ({}, {}, {"PYTHONPATH": sys.argv[1]}):
    cluster.add_node(num_cpus=1, env_vars=variables, **small)
cluster.add_node(num_cpus=0, num_gpus=2, env_vars={"PYTHONPATH": sys.argv[2]}, **small)
print(cluster.address, flush=True)
input()
cluster.shutdown()
"""


@dataclass(frozen=True)
class Nodes:
    address: str
    pid: int

    def workers(self) -> list[psutil.Process]:
        """Those that do a portion."""
        below = psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            return [one for one in below if one.cmdline()[:1] == ["ray::_Worker.carry_out"]]
        return []


@pytest.fixture(scope="module")
def nodes(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster, in processes of its own, of two nodes of one processor each, a third that cannot import varbench, and one that has
    two GPUs by what it says, and by what stands there in torch's place."""
    pytest.importorskip("ray", reason="needs varbench[ray]")
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "bare" / "varbench").mkdir(parents=True)
    (folder / "bare" / "varbench" / "__init__.py").write_text("raise ImportError('not installed here')")
    write_whole(folder / "gpus" / "torch.py", TORCH.encode())
    variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "XDG_CACHE_HOME": str(caches / "nodes")}
    with open(folder / "log", "w") as log, subprocess.Popen(
        [sys.executable, "-c", NODES, str(folder / "bare"), str(folder / "gpus")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=variables, text=True,
    ) as started:  # fmt: skip
        assert started.stdout is not None
        address = started.stdout.readline().strip()
        assert address, (folder / "log").read_text()
        yield Nodes(address, started.pid)
        started.communicate("\n")


def kill_a_worker(nodes: Nodes, run: subprocess.Popen[str]) -> list[int]:
    """The first that makes images, whose processes are a nursery, a maker and a scorer or more. Says which processes all have started.

    The first and not one of two: where one begins late the other may be done with its images before that."""
    while run.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(psutil.NoSuchProcess):
            begun = {worker: [child.pid for child in worker.children(recursive=True)] for worker in nodes.workers()}
            at_it = [worker for worker, children in begun.items() if len(children) >= 3]
            if at_it:
                at_it[0].kill()
                return [*chain.from_iterable(begun.values())]
    raise AssertionError("the run ended before a worker was at it")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_images_one_more_try_and_no_score(
    nodes: Nodes, scored_run: Run, alone: Path, caches: Path, tmp_path: Path
) -> None:
    """Two nodes share the images of the row that was left of a run."""
    out = with_the_full_model_done(alone, tmp_path / "out")
    command = [
        sys.executable, "-m", *as_arguments(scored_run.options, row=SOME), "--fresh", "--resume", "--out", str(out),
        "--executor", "ray", "--address", nodes.address,
    ]  # fmt: skip
    with open(tmp_path / "said", "w") as said:
        variables = {**os.environ, "XDG_CACHE_HOME": str(caches / "alone")}
        run = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, text=True, env=variables)
        children = kill_a_worker(nodes, run)
        code = run.wait()
    lines = (tmp_path / "said").read_text().splitlines()
    assert code == 0, lines
    found = {record.row.row: record for record in load_records([out]).records}
    assert_same_images(alone, found)
    assert any("begun again" in warning.text for warning in found[SOME].warnings)

    begun = [re.fullmatch(r"\[.*\] (.*) on (\S+)", line) for line in lines]
    times = Counter(one[1] for one in begun if one)
    (lost,) = [line.strip().partition(": ")[0] for line in lines if "begins again elsewhere" in line]
    wanted = map(str, portions(scored_run, places=2, done={FULL, UPSTREAM}))
    assert times == {**dict.fromkeys(wanted, 1), lost: 2}, "nothing is done twice but what was lost"
    (left_out,) = [line.split()[0] for line in lines if "is left out: ImportError: not installed" in line]
    assert left_out not in {one[2] for one in begun if one}
    while any(map(runs, children)):  # they go with their worker, which goes with the run
        time.sleep(0.1)


@pytest.mark.slow
def test_every_gpu_of_a_node_is_a_place_of_its_own_and_is_taken_whole(nodes: Nodes) -> None:
    import ray

    notes = list[str]()
    asked = options(executor="ray", address=nodes.address, device="cuda")
    with RayCluster(asked, note=notes.append) as cluster:
        places, end = cluster.places(), time.monotonic() + 30
        while ray.available_resources().get("GPU") and time.monotonic() < end:  # it hears of it a moment later
            time.sleep(0.1)
        assert ray.cluster_resources()["GPU"] == 2 and not ray.available_resources().get("GPU"), "no row shares a GPU"
    assert {place.name.rpartition("-")[2] for place in places} == {"gpu0", "gpu1"}
    assert {place.kind: place.free for place in places} == {"NVIDIA H100": 2**20, "NVIDIA L20": 2**20}
    assert not notes


@pytest.mark.slow
def test_rows_go_from_a_machine_without_a_gpu_to_one_of_the_kind_that_is_asked_for(
    nodes: Nodes, varbench: CommandLine, tmp_path: Path
) -> None:
    """What is there in torch's place makes no images, so the rows come to their end by the reason that it gives."""
    asked = (
        "run", "--executor", "ray", "--address", nodes.address, "--device", "cuda", "--plugins", FULL, "--weights", "random",
        "--quick", "--batch", "4", "--out",
    )  # fmt: skip
    refused = varbench(*asked, "out", "--kind", "H200")
    assert refused.returncode == 2, refused.stderr
    assert "--kind H200: no such device is free in the cluster, which has 1 of NVIDIA" in refused.stderr
    assert not load_records([tmp_path / "out"]).records

    found = varbench(*asked, "out", "--kind", "l20", CUDA_VISIBLE_DEVICES="")
    assert found.returncode == ALL_FAILED, found.stderr
    said = found.stderr.splitlines()
    assert "all rows run on NVIDIA L20, as was asked for; left alone: 1 of NVIDIA H100" in said
    assert any(re.search(f"] {FULL} on .*-gpu[01]$", line) for line in said)
    short = [line for line in said if line.startswith(f"warning: {FULL} needs about ")]
    assert len(short) == 1 and "of 0.000977 GiB" in short[0], "the memory is that GPU's"
    for record in load_records([tmp_path / "out"]).records:
        assert record.status is Status.FAILED and "torch" in (record.reason or "")


def test_processors_of_a_node_are_shared_out_to_its_gpus() -> None:
    pytest.importorskip("ray", reason="needs varbench[ray]")

    def node(name: str, *, alive: bool = True, **has: float) -> dict[str, Any]:
        return {"NodeID": name * 56, "NodeManagerHostname": "host", "Alive": alive, "Resources": has}

    there = [node("a", CPU=9, GPU=2), node("b", CPU=4), node("c", GPU=1), node("d", alive=False, GPU=1)]

    def slots(*, gpu: bool) -> dict[str, tuple[Any, Any]]:
        cluster = SimpleNamespace(_gpu=gpu, _ray=SimpleNamespace(nodes=lambda: there))
        found = RayCluster._slots(cluster)  # type: ignore[arg-type]
        assert all(asked["scheduling_strategy"].node_id[:6] in name for name, asked in found.items())
        return {name: (asked.get("num_gpus"), asked["num_cpus"]) for name, asked in found.items()}

    a, b, c = (f"host-{one * 6}" for one in "abc")
    assert slots(gpu=True) == {f"{a}-gpu0": (1, 4), f"{a}-gpu1": (1, 4), f"{c}-gpu0": (1, 0)}
    assert slots(gpu=False) == {a: (None, 9), b: (None, 4)}


@pytest.mark.slow
def test_without_an_address_ray_is_started_on_this_machine_and_ends_with_the_run(tmp_path: Path) -> None:
    """SIGTERM is still what it is in any run."""
    pytest.importorskip("ray", reason="needs varbench[ray]")
    command = [
        sys.executable, "-m", "varbench", "run", "--executor", "ray", "--plugins", FULL, "--weights", "random", "--quick",
        "--dtype", "float32", "--batch", "1", "--rounds", "1", "--count", "1", "--budget", "0", "--out", str(tmp_path),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        assert run.stderr is not None
        lines = []
        for line in run.stderr:
            lines.append(line)
            if line.startswith("[1/2, "):
                started = psutil.Process(run.pid).children(recursive=True)
                run.terminate()
    assert run.returncode == INTERRUPTED, lines
    assert any(f"] {FULL} on {socket.gethostname()}" in line for line in lines)
    assert "go on with: varbench run --executor ray" in lines[-1]
    statuses = {record.row.row: record.status for record in load_records([tmp_path]).records}
    assert statuses == {FULL: Status.COMPLETE, UPSTREAM: Status.INTERRUPTED}
    while any(runs(one.pid) for one in started):
        time.sleep(0.1)


def test_an_address_that_nobody_answers_at_is_refused_at_once(varbench: CommandLine) -> None:
    pytest.importorskip("ray", reason="needs varbench[ray]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    found = varbench("run", "--executor", "ray", "--address", address, "--plugins", "variant@d2", "--weights", "random")
    assert found.returncode == 2
    assert f"--address {address}: nobody answers there" in found.stderr


def test_an_address_at_which_something_else_listens_is_refused_in_time(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs varbench[ray]")
    impatient = "import sys; from varbench.run.spread import on_ray; on_ray.PATIENCE = 1.0; from varbench.__main__ import entry; sys.exit(entry())"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        found = subprocess.run(
            [
                sys.executable, "-c", impatient, "run", "--executor", "ray", "--address", address, "--plugins", "variant@d2",
                "--weights", "random",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert f"--address {address}: what listens there is no Ray head, or did not answer in 1 s" in found.stderr


def test_an_address_without_its_executor_is_refused(varbench: CommandLine) -> None:
    found = varbench("run", "--address", "auto", "--plugins", "variant@d2")
    assert found.returncode == 2 and "give --executor ray too" in found.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kind", "H100"), "--kind H100 is of devices of a Ray cluster: give --executor ray too"),
        (("--executor", "ray", "--device", "cuda:1"), "--executor ray takes all GPUs of a kind; give --device cuda"),
    ],
)
def test_one_gpu_is_named_by_number_here_and_by_its_kind_in_a_cluster(
    varbench: CommandLine, words: tuple[str, ...], said: str
) -> None:
    found = varbench("run", "--plugins", "variant@d2", *words)
    assert found.returncode == 2 and said in found.stderr


def test_this_machines_memory_and_rates_say_nothing_of_rows_that_run_elsewhere(
    random_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for executor, here in (("local", True), ("ray", False)):
        given = replace(random_run.options, executor=executor)
        run = replace(random_run, options=given, available_memory=prepared(given, tmp_path).available_memory)
        assert (run.available_memory is not None) == here
        assert (forecast(run, tmp_path, {}, weights=Ahead(origins={})).seconds is not None) == here

    seen = list[int | None]()
    monkeypatch.setattr(portion_module, "available_memory", lambda: 2**30)
    monkeypatch.setattr(portion_module._Telling, "everything", lambda self: seen.append(self.run.available_memory))
    assert not [*carry_out(Errand(run=run, portion=Portion(rows=("variant@d2",))))]
    assert seen == [2**30], "where they run it is asked for"


def test_files_are_looked_at_on_a_machine_that_lacks_the_rows_device(random_run: Run) -> None:
    def looked_at(executor: str) -> Inspected:
        options = replace(random_run.options, device="cuda:99", executor=executor)
        return inputs.check(replace(random_run, options=options).job(task="inspecting"))

    assert looked_at("ray") == Inspected(device_memory=None)
    with pytest.raises(UserError, match="device 'cuda:99' was asked for, but torch .* sees"):
        looked_at("local")


def test_without_ray_the_error_names_what_to_install(varbench: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "none" / "ray").mkdir(parents=True)
    (tmp_path / "none" / "ray" / "__init__.py").write_text("raise ImportError")
    found = varbench(
        "run", "--executor", "ray", "--plugins", "variant@d2", "--weights", "random", path=tmp_path / "none"
    )
    assert found.returncode == 2 and "pip install 'varbench[ray]'" in found.stderr
