"""Whether records can be believed by somebody who did not make them: what can be derived anew here is, and kept images are scored
again.

The hashes that a record holds say what it was made from; here stands what the same row would be made from now.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from varbench.base.hashing import file_hash
from varbench.base.places import cache_folder
from varbench.errors import UserError
from varbench.measure.calls import Chunk, balanced_labels
from varbench.plan import presets
from varbench.quality.images import kept_images, write_made
from varbench.record import Record, Score, row_slug
from varbench.record.options import options_of
from varbench.run import children, identity
from varbench.run.messages import Begin, Begun, Finish, Scored, Take, Taken
from varbench.run.prepare import Run, prepare

NEAR = 1e-3
"""Share by which a score may differ: sums are taken in another order on another machine."""
_AT_ONCE = 250


@dataclass(frozen=True, kw_only=True)
class Rechecked:
    """One thing that a record says, beside what is found here."""

    row: str
    what: str
    recorded: str | None
    here: str | None
    """None where it cannot be had here."""
    same: bool | None
    """None where it cannot be told."""


def recheck(records: Sequence[Record], folder: Path) -> Iterator[Rechecked]:
    """All that can be said of these records; `folder` is the run's, where images may have been kept."""
    for group in _groups(records):
        try:
            run = _run_of(group)
        except UserError as error:
            for record in group:
                yield Rechecked(row=record.row.row, what="the run", recorded=None, here=str(error), same=None)
            continue
        for record in group:
            yield from _derived(record, run)
            if (images := _images(folder, record.row.row)) is not None and record.quality is not None:
                yield from _rescored(record, run, images)


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records that one run made under one set of options, apart from studies, whose rows are asked for otherwise."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(repr((record.run, _asked(record), record.row.study)), []).append(record)
    return list(found.values())


def _asked(record: Record) -> dict[str, object]:
    known = options_of(type(record.protocol))
    return {name: getattr(record.protocol, name) for name, option in known.items() if not option.found}


def _run_of(group: list[Record]) -> Run:
    first = group[0]
    studied = () if first.row.study is None else (first.row.study,)
    rows = ",".join(record.row.row for record in group) if not studied else ""
    return prepare(replace(first.protocol, plugins=rows, study=studied, calibrate=False), name=first.run)


def _derived(record: Record, run: Run) -> Iterator[Rechecked]:
    name = record.row.row
    row = run.rows.get(name)
    if row is None:
        yield Rechecked(row=name, what="the row", recorded=name, here=None, same=False)
        return

    def beside(what: str, recorded: str | None, here: str | None) -> Rechecked:
        known = recorded is not None and here is not None
        return Rechecked(row=name, what=what, recorded=recorded, here=here, same=recorded == here if known else None)

    if record.plan is not None:
        yield beside("plan", record.plan.digest, row.plan.digest if row.plan else None)
    here = {plugin.name: plugin.code_hash for plugin in row.identity.plugins}
    for plugin in record.row.plugins:
        yield beside(f"plugin {plugin.name}", plugin.code_hash, here.get(plugin.name))
    yield beside("varbench", record.code_hash, identity.code_hash())
    weights = {**_networks(record), **run.hashes, **_trained_here(record)}
    for file in record.weights:
        yield beside(f"weights {file.role}", file.sha256, weights.get(file.role))
    yield beside("inputs", record.inputs_hash, row.inputs)


def _networks(record: Record) -> dict[str, str | None]:
    """Hashes of the preset's own networks that score."""
    folder = presets.asset_folder(record.model.preset)
    files = {file.role: folder / f"{file.name}.safetensors" for file in record.weights}
    return {role: file_hash(path) for role, path in files.items() if path.is_file()}


def _trained_here(record: Record) -> dict[str, str | None]:
    """Hashes of the recipe's weights by role: of those that ship, or that the cache has."""
    training = record.training
    if training is None:
        return {}
    shipped = presets.recipe_records(presets.asset_folder(record.model.preset))
    places = [place for place, told in shipped if told["key"] == training.key]
    for place in (*places, cache_folder("weights") / training.key):
        if (place / presets.RECORD).is_file():
            return {path.stem: file_hash(path) for path in place.glob("*.safetensors")}
    return {file.role: None for file in record.weights if file.role not in ("vae", "features", "judge")}


def _images(folder: Path, row: str) -> Path | None:
    place = folder / "images" / row_slug(row)
    return next((path for path in (place.with_name(f"{place.name}.npz"), place) if path.exists()), None)


def _rescored(record: Record, run: Run, images: Path) -> Iterator[Rechecked]:
    assert record.quality is not None
    row, classes, first = record.row.row, run.model.classes, 0
    with tempfile.TemporaryDirectory(prefix="varbench-") as place:
        folder = Path(place)
        with children.start(run.job(task="scoring"), folder=folder, log=folder / "log") as scorer:
            scorer.ask(Begin(row=row, full=False, before=run.began), Begun)
            for some in kept_images(images, at_once=_AT_ONCE):
                chunk = folder / "chunk.npz"
                with open(chunk, "wb") as file:
                    write_made(file, some, None)
                labels = balanced_labels(len(some), classes, first=first)
                scorer.ask(Take(chunk=Chunk(path=str(chunk), sha256=file_hash(chunk)), labels=labels), Taken)
                first += len(some)
            scored = scorer.ask(Finish(expected=run.options.images), Scored)
    again = {score.name: score for score in (scored.quality.scores if scored.quality else ())}
    for score in record.quality.scores:
        if score.value is not None:
            yield _scores(row, score, again.get(score.name))


def _scores(row: str, recorded: Score, here: Score | None) -> Rechecked:
    one, other = recorded.value, here.value if here else None
    assert one is not None
    return Rechecked(
        row=row,
        what=recorded.name,
        recorded=f"{one:.5g}",
        here=None if other is None else f"{other:.5g}",
        same=None if other is None else abs(one - other) <= NEAR * max(abs(one), 1e-6),
    )
