"""Two sets of records against each other: what improved, what regressed, and whether a limit was broken.

`same` always means that no difference was shown; it may or may not be there. Rows under unlike protocols are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from varbench.base import stats
from varbench.base.stats import Interval, Judgement
from varbench.errors import UserError
from varbench.record import Record
from varbench.show import formatting
from varbench.show.compare_speed import SPEED_MINIMUM, Side, speed_changes
from varbench.show.conditions import conditions_of
from varbench.show.entries import Entry, blocks_of, need_seeds, score_difference, score_label
from varbench.show.limits import Change, Outcome, parse_limits, with_limits

_MACHINE = ("machine", "device")
_VERDICTS: dict[Judgement, Outcome] = {"better": "improved", "worse": "regressed", "same": "same"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """A limit of `--fail-on` was broken, which is exit code 1."""
        return any(change.broken for change in self.changes)


def compare(old: Sequence[Record], new: Sequence[Record], *, fail_on: str = "") -> Comparison:
    """Rows that both sets hold, figure by figure. `fail_on` takes limits such as `speed:5%,fid:0.2`."""
    limits = parse_limits(fail_on)
    before, after = _entries(old), _entries(new)
    shared = [name for name in before if name in after]
    if not shared:
        first, second = (formatting.some(entries) or "no rows" for entries in (before, after))
        raise UserError(f"no row is in both: the first has {first}, the second {second}; compare runs of the same rows")
    for name in shared:
        _refuse_unlike(name, before[name].entry, after[name].entry)
    pairs = {name: (before[name], after[name]) for name in shared}
    speeds = speed_changes({name: pair for name, pair in pairs.items() if all(side.entry.believable for side in pair)})
    changes: list[Change] = []
    for name, (older, newer) in pairs.items():
        changes += [*speeds[name], *_changes(name, older.entry, newer.entry)] if name in speeds else []
        changes += [] if name in speeds else [_validity(name, older.entry, newer.entry)]
    for name, verdict in [(n, "gone") for n in before if n not in after] + [
        (n, "new") for n in after if n not in before
    ]:
        changes.append(_presence(name, verdict))
    changes = with_limits(_all_in_mind(changes), limits)
    return Comparison(changes=tuple(changes), warnings=tuple(_warnings(old, new, before, after, shared)))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Plain values for `--json`."""
    return {
        "failed": comparison.failed,
        "warnings": list(comparison.warnings),
        "changes": [
            {
                "row": change.row,
                "figure": change.figure,
                "verdict": change.verdict,
                "old": change.old,
                "new": change.new,
                "change": change.change.value if change.change else None,
                "low": change.change.low if change.change else None,
                "high": change.change.high if change.change else None,
                "relative": change.relative,
                "broken": change.broken,
            }
            for change in comparison.changes
        ],
    }


COLUMNS = ("row", "figure", "old", "new", "change", "verdict")


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The changes as text, under `COLUMNS`."""
    return [
        (
            change.row,
            change.figure,
            _shown(change.old, change.unit),
            _shown(change.new, change.unit),
            _shown_change(change),
            f"{change.verdict}, breaks {change.broken}" if change.broken else change.verdict,
        )
        for change in comparison.changes
    ]


def as_table(comparison: Comparison) -> str:
    from tabulate import tabulate

    table: str = tabulate(table_rows(comparison), headers=COLUMNS, disable_numparse=True)
    return table


def _entries(records: Sequence[Record]) -> dict[str, Side]:
    """Repeats of a row together; upstream accounting of a row is another row."""
    found: dict[str, Side] = {}
    presets = {record.model.preset for record in records}
    for block in blocks_of(records):
        for entry in block.everything:
            record = entry.records[0]
            upstream = " (upstream)" if record.protocol.accounting == "upstream" else ""
            study = f" [{record.row.study}]" if record.row.study else ""
            name = f"{record.row.row}{upstream}{study}"
            name = name if len(presets) == 1 else f"{name} on {record.model.preset}"
            if name in found:
                unlike = _unlike(found[name].entry.records[0], record)
                raise UserError(f"{name} occurs under several conditions ({unlike}): compare one run with one run")
            found[name] = Side(entry=entry, full=block.full.get("lossless"))
    return found


def _unlike(first: Record, second: Record) -> str:
    one, two = conditions_of(first), conditions_of(second)
    return ", ".join(f"{name} {one[name]} and {two[name]}" for name in one if one[name] != two[name])


def _refuse_unlike(name: str, old: Entry, new: Entry) -> None:
    one, two = conditions_of(old.first), conditions_of(new.first)
    unlike = [key for key in one if key not in _MACHINE and one[key] != two[key]]
    if unlike:
        what = ", ".join(f"{key} {one[key]} and {two[key]}" for key in unlike)
        raise UserError(f"{name} was measured under unlike protocols ({what}): run both under one and compare again")


def _validity(name: str, old: Entry, new: Entry) -> Change:
    """Of a row that is to be believed in one set at most: nothing else of it is compared."""
    texts = [entry.trouble or "valid" for entry in (old, new)]
    verdict: Outcome = "regressed" if old.believable else "improved" if new.believable else "same"
    return Change(
        row=name, figure=f"validity: {texts[0]} -> {texts[1]}", verdict=verdict, old=None, new=None, change=None, unit="",
        relative=False, broken="validity" if verdict == "regressed" else None,
    )  # fmt: skip


def _changes(name: str, old: Entry, new: Entry) -> list[Change]:
    found = [
        _bytes(name, "memory", "peak_bytes", old, new),
        _bytes(name, "state", "state_peak_bytes", old, new),
        *_scores(name, old, new),
    ]
    return [change for change in found if change is not None]


def _bytes(name: str, figure: str, key: str, old: Entry, new: Entry) -> Change | None:
    """Old bytes over new bytes: above 1 is less memory. They have no interval: on a CPU one byte is a change. On a GPU libraries
    choose what they work with, and a change is one from a least size on."""
    before, after = old.own_memory(key), new.own_memory(key)
    if not before or not after:
        return None
    ratio = before / after
    minimum = 0.0 if new.first.environment.device == "cpu" else SPEED_MINIMUM
    judged = stats.judge_ratio(Interval(value=ratio, low=ratio, high=ratio), minimum=minimum)
    change = Interval(value=ratio - 1, low=ratio - 1, high=ratio - 1)
    return Change(
        row=name, figure=figure, verdict=_VERDICTS[judged], old=before, new=after, change=change, unit="B", relative=True,
        broken=None,
    )  # fmt: skip


def _scores(name: str, old: Entry, new: Entry) -> list[Change]:
    changes = []
    scores = old.first.quality.scores if old.first.quality else ()
    others = {score.name: score for score in (new.first.quality.scores if new.first.quality else ())}
    for score in scores:
        before, after = old.score(score.name), new.score(score.name)
        other = others.get(score.name)
        if before is None or after is None or other is None:
            continue
        if (score.weights_sha256, score.reference) != (other.weights_sha256, other.reference):
            raise UserError(
                f"{name}: {score.name} was computed with other feature weights or another reference in the two sets "
                f"({score.weights_sha256} and {other.weights_sha256}, {score.reference} and {other.reference}); "
                "score both with the same"
            )
        gap = score_difference(new, old, score.name)
        assert gap is not None, "both have the score"
        # Weights that were trained anew tell nothing of the code that trained them, but by several seeds.
        judged = "same" if need_seeds(new, old) else stats.judge_difference(gap, better=score.better)
        worse = gap if score.better == "higher" else Interval(value=-gap.value, low=-gap.high, high=-gap.low)
        changes.append(
            Change(
                row=name, figure=score_label(score), verdict=_VERDICTS[judged], old=before.value, new=after.value,
                change=worse, unit=score.name, relative=False, broken=None,
            )
        )  # fmt: skip
    return changes


def _all_in_mind(changes: Sequence[Change]) -> list[Change]:
    """Differences of scores are called so with all others of the comparison in mind, by Holm: each row has several."""
    gaps = {number: one.change for number, one in enumerate(changes) if one.change is not None and not one.relative}
    shown = dict(zip(gaps, stats.holm(list(map(stats.chance_of, gaps.values()))), strict=True))
    return [
        change if shown.get(number, True) else replace(change, verdict="same") for number, change in enumerate(changes)
    ]


def _presence(name: str, verdict: Any) -> Change:
    return Change(
        row=name,
        figure="row",
        verdict=verdict,
        old=None,
        new=None,
        change=None,
        unit="",
        relative=False,
        broken=None,
    )


def _warnings(
    old: Sequence[Record],
    new: Sequence[Record],
    before: dict[str, Side],
    after: dict[str, Side],
    shared: list[str],
) -> list[str]:
    warnings = []
    for what, values in (
        (
            "machines",
            [{f"{r.environment.cpu} ({r.environment.machine})" for r in records} for records in (old, new)],
        ),
        ("devices", [{r.environment.device for r in records} for records in (old, new)]),
        (
            "torch versions",
            [{r.environment.versions.get("torch", "unknown") for r in records} for records in (old, new)],
        ),
        ("GPU drivers", [{r.environment.driver or "none" for r in records} for records in (old, new)]),
        ("seeds", [{str(r.protocol.seed) for r in records} for records in (old, new)]),
    ):
        if values[0] != values[1]:
            texts = [", ".join(sorted(side)) for side in values]
            warnings.append(f"the two sets come from different {what}: {texts[0]} against {texts[1]}")
    doubted = [name for name in shared if not any(side[name].entry.believable for side in (before, after))]
    if doubted:
        warnings.append(f"valid in neither set, not compared: {', '.join(doubted)}")
    return warnings


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    shown = {"s": formatting.seconds, "B": formatting.size, "x": "{:.2f}x".format}
    return shown.get(unit, formatting.number)(value)


def _shown_change(change: Change) -> str:
    """Above 0 is better, in every line."""
    if change.change is None:
        return "–"
    value, low, high = change.change.value, change.change.low, change.change.high
    if change.unit == "B" and change.old is not None and change.new is not None:
        less = int(change.old - change.new)
        return f"{value:+.1%} ({abs(less):,} B {'less' if less > 0 else 'more'})" if less else "none"
    if change.relative:
        span = f" ({low:+.1%} to {high:+.1%})" if low != high else ""
        return f"{value:+.1%}{span}"
    return f"{value:+.3g} ({low:+.3g} to {high:+.3g})"
