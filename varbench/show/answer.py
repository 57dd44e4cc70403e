"""Which row to deploy, or why none, in one sentence. No method is named in the code: it says what the records show.

The rule: of the rows that are faster than the full model beyond noise, the one to deploy is the fastest whose quality is
not shown to be worse; where all are worse, the one that is nearest in quality. A rival is a row of another method that
does the same work (same plan) or is as fast; the sentence says whether the two can be told apart.
"""

from __future__ import annotations

from collections import Counter

from varbench.base import stats
from varbench.show import formatting
from varbench.show.entries import Block, Entry, ended, judge_quality, judge_speed, need_seeds, score_label

LOSSES = (1.1, 2, 3)


def answer(block: Block | None) -> str:
    """One sentence; also where there is nothing to say, and then why."""
    if block is None or not block.entries:
        return "There are no records of rows here, so there is no answer."
    sentence = _answer(block)
    if block.conditions["quick"]:
        sentence = f"Quick look, not a result: {sentence[0].lower()}{sentence[1:]}"
    return sentence


def _answer(block: Block) -> str:
    believable = [entry for entry in block.entries if entry.believable]
    if not believable:
        count = len(block.entries)
        kinds = Counter(ended(record) for entry in block.entries for record in entry.records[:1])
        what = ", ".join(
            f"{number} {kind}" for kind, number in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        )
        return f"No valid row: of {count} measured, {what}; these records answer nothing."
    full = block.full.get("lossless")
    rows = [entry for entry in believable if not entry.is_full]
    if full is None or not full.believable:
        names = _names(believable[:3]) + (" and others" if len(believable) > 3 else "")
        missing = "was not measured" if full is None else "has no valid row"
        return f"The full model {missing} under these conditions, so {names} cannot be compared with it{_only(believable)}."
    if not rows:
        return f"Only the full model was measured ({_facts(full, block)}), so there is nothing to compare it with."
    timed = [entry for entry in rows if "lossless" in entry.speedups]
    if not timed:
        return f"Speed was not measured; {_best_quality(rows, full, block)}."
    faster = _faster(timed, full)
    if not faster:
        which = f"`{timed[0].name}` is" if len(timed) == 1 else f"None of {len(timed)} rows is"
        negation = "not " if len(timed) == 1 else ""
        return f"{which} {negation}faster than the full model by more than the noise of this machine."
    if full.quality is None or all(entry.quality is None for entry in faster):
        best = max(faster, key=lambda entry: entry.speedups["lossless"].value)
        reason = "the weights are random" if block.conditions["weights"] == "random" else "it was not measured"
        return f"`{best.name}` is the fastest, {_speed(best)}; of quality nothing is known, since {reason}."
    scored = [entry for entry in faster if entry.quality is not None]
    free = [entry for entry in scored if judge_quality(entry, full) in ("same", "better")]
    if free:
        best = max(free, key=lambda entry: entry.speedups["lossless"].value)
        best = _best_of([best, *_rivals(best, free)], block)
        better = judge_quality(best, full) == "better"
        loss = "better than" if better else "not shown to be worse than"
        start = (
            f"Deploy `{best.name}`: {_speed(best)}, at {_quality(best, block)}, {loss} the full model's {_number(full)}"
        )
    else:
        best = _best_of(scored, block)
        start = (
            f"No faster row keeps the full model's quality: `{best.name}` comes nearest, {_speed(best)}, "
            f"at {_quality(best, block)} against {_number(full)}"
        )
    return f"{start}{_against_rival(best, scored)}."


def _faster(rows: list[Entry], full: Entry) -> list[Entry]:
    """What runs the full model's own plan has no cause to be faster: such a difference is the machine's."""
    return [entry for entry in rows if not _same_work(entry, full) and judge_speed(entry, "lossless") == "better"]


def by_loss(block: Block | None) -> str:
    """The fastest row for each share of quality that somebody may give up, as distances go: a score that is better when it is
    lower. Empty where that says nothing beside the answer."""
    full = None if block is None else block.full.get("lossless")
    if block is None or full is None or not full.believable or full.quality is None or block.headline is None:
        return ""
    scored = [entry for entry in block.entries if entry.believable and not entry.is_full and entry.quality is not None]
    faster = _faster(scored, full)
    if block.headline.better != "lower" or len(faster) < 2:
        return ""
    found, named = [], None
    for times in LOSSES:
        within = [
            entry for entry in faster if entry.quality is not None and entry.quality.value <= times * full.quality.value
        ]
        best = max(within, key=lambda entry: entry.speedups["lossless"].value, default=None)
        if best is None:
            found.append("none")
        elif best is named:
            found.append("the same")
        else:
            found.append(f"`{best.name}` ({best.speedups['lossless'].value:.2f}x, {_number(best)})")
        named = best
    label = "score" if full.headline is None else score_label(full.headline)
    (first, fastest), *more = zip(LOSSES, found, strict=True)
    further = "".join(f", within {times:g}x {which}" for times, which in more)
    return f"The fastest row within {first:g}x the full model's {label} ({_number(full)}): {fastest}{further}."


def _against_rival(best: Entry, rows: list[Entry]) -> str:
    rivals = _rivals(best, rows)
    if not rivals:
        return ""
    higher = best.headline is not None and best.headline.better == "higher"
    rival = sorted(rivals, key=lambda entry: entry.quality.value if entry.quality else 0.0, reverse=higher)[0]
    how = "at the same work" if _same_work(best, rival) else "at the same speed"
    if need_seeds(best, rival):
        return f"; {how} one seed of training does not tell its recipe from that of `{rival.name}` ({_number(rival)})"
    verdict = judge_quality(best, rival)
    if verdict == "same":
        return f"; {how} `{rival.name}` ties with it within noise ({_number(rival)})"
    return f"; {how} it is {verdict} than `{rival.name}` ({_number(rival)})"


def _rivals(best: Entry, rows: list[Entry]) -> list[Entry]:
    """Rows of other methods or recipes that do the same work, else those whose speed cannot be told from this one's."""
    others = [entry for entry in rows if entry.family != best.family and entry.quality is not None]
    same_work = [entry for entry in others if _same_work(best, entry)]
    return same_work or [entry for entry in others if _same_speed(best, entry)]


def _same_work(entry: Entry, other: Entry) -> bool:
    plans = (entry.first.plan, other.first.plan)
    return plans[0] is not None and plans[1] is not None and plans[0].digest == plans[1].digest


def _same_speed(entry: Entry, other: Entry) -> bool:
    mine, theirs = entry.speedups["lossless"], other.speedups["lossless"]
    return stats.judge_difference(stats.difference(mine, theirs), better="higher") == "same"


def _best_of(entries: list[Entry], block: Block) -> Entry:
    higher = block.headline is not None and block.headline.better == "higher"
    return sorted(entries, key=lambda e: e.quality.value if e.quality else 0.0, reverse=higher)[0]


def _best_quality(rows: list[Entry], full: Entry, block: Block) -> str:
    """Of what computes something else than the full model: to be nearly as good as itself is no feat."""
    fulls = block.full.values()  # in each accounting
    scored = [entry for entry in rows if entry.quality is not None and not any(_same_work(entry, one) for one in fulls)]
    if not scored:
        return "nor was the quality of anything but the full model's plan"
    best = _best_of(scored, block)
    beside = f", beside the full model's {_number(full)}" if full.quality is not None else ""
    return f"`{best.name}` has the best quality of the methods, {_quality(best, block)}{beside}"


def _facts(entry: Entry, block: Block) -> str:
    seconds = entry.seconds("transformer", "throughput")
    parts = [_quality(entry, block)] if entry.quality else []
    parts += [f"{formatting.seconds(seconds.value)} a batch of {block.conditions['batch']}"] if seconds else []
    return ", ".join(parts) or "no figures"


def _only(entries: list[Entry]) -> str:
    return "" if len(entries) > 1 else "; it is the only row"


def _names(entries: list[Entry]) -> str:
    return ", ".join(f"`{entry.name}`" for entry in entries)


def _speed(entry: Entry) -> str:
    speedup = entry.speedups["lossless"]
    return f"{speedup.value:.2f}x as fast as the full model ({speedup.low:.2f} to {speedup.high:.2f})"


def _quality(entry: Entry, block: Block) -> str:
    assert entry.headline is not None
    return f"{score_label(entry.headline)} {_number(entry)}"


def _number(entry: Entry) -> str:
    assert entry.quality is not None
    return formatting.with_interval(entry.quality)
