"""Reports from records alone: the answer, the honesty of the table, the files, and what strangers can put into it."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import itertools
import json
import math
import random
import re
import shlex
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest
from record_factory import full_records, make_record, make_score

from varbench import record as r
from varbench.base import stats
from varbench.commands import report as command
from varbench.errors import UserError
from varbench.record.plan_summary import plan_summary
from varbench.record.sections import Panel, checked, from_data, given, to_data
from varbench.rows.manager import PluginManager
from varbench.show import (
    Chart,
    Image,
    Section,
    Table,
    Text,
    chart_library,
    columns,
    figures_speed,
    figures_study,
    figures_trade_off,
    formatting,
    labels,
    outputs,
    plugin_sections,
    speedups,
    stills,
)
from varbench.show.answer import answer, by_loss
from varbench.show.columns import table_of
from varbench.show.entries import blocks_of, judge_quality, score_difference, score_label
from varbench.show.outputs import render
from varbench.show.plugin_sections import PluginPanels, plugin_panels
from varbench.show.stills import still
from varbench.show.table import as_table, report_command

VARIANT, FIXED = "variant@d8", "fixed_ratio@p05/d8"


def sentence(found):
    blocks = blocks_of(found)
    return answer(blocks[0] if blocks else None)


def against(variant, fixed, *, seconds=0.5):
    """Of rows on the same weights."""
    rows = [
        make_record(VARIANT, seconds=seconds, quality=variant, training=False),
        make_record(FIXED, seconds=seconds, quality=fixed, training=False),
    ]
    return sentence([*full_records(quality=5.0), *rows])


def seeded(record, seed):
    return dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, seed=seed))


def with_swings(record, swings):
    """The record with the halves of its images in the headline score."""
    headline, *others = record.quality.scores
    scores = (dataclasses.replace(headline, swings=swings, reference="same", weights_sha256="same"), *others)
    return dataclasses.replace(record, quality=dataclasses.replace(record.quality, scores=scores))


def cells(found, row):
    block = blocks_of(found)[0]
    headings, rows = table_of(block)
    place = [entry.name for entry in block.entries].index(row)
    return dict(zip([column.key for column in headings], rows[place], strict=True))


def test_the_answer_where_the_method_wins():
    said = against(5.05, 6.5)
    assert said.startswith(f"Deploy `{VARIANT}`: 2.0")
    assert "not shown to be worse than the full model's 5.00 ± 0.20" in said
    assert f"it is better than `{FIXED}`" in said


def test_the_answer_where_the_method_loses():
    said = against(6.5, 5.05)
    assert said.startswith(f"Deploy `{FIXED}`")
    assert f"it is better than `{VARIANT}`" in said


def test_the_answer_where_both_tie_within_noise():
    said = against(5.05, 5.15)
    assert said.startswith(f"Deploy `{VARIANT}`")
    assert f"`{FIXED}` ties with it within noise" in said


def test_what_is_fastest_for_each_loss_that_is_accepted(tmp_path):
    """By point values; a row within noise of the full model's speed is no answer, however good."""
    rows = [
        make_record("scale_window@w1", seconds=0.995, quality=5.0, training=False),
        make_record(VARIANT, seconds=0.6, quality=5.4, training=False),
        make_record("variant@d4", seconds=0.4, quality=9.0, training=False),
        make_record("variant@d2", seconds=0.2, quality=16.0, training=False),
    ]
    (block,) = blocks_of([*full_records(quality=5.0), *rows])
    said = by_loss(block)
    assert said.startswith(
        f"The fastest row within 1.1x the full model's FD-shapes (5.00 ± 0.20): `{VARIANT}` (1.67x, 5.40 ± "
    )
    assert "within 2x `variant@d4` (2.51x, 9.00 ± " in said and said.endswith("within 3x the same.")
    (block,) = blocks_of([*full_records(quality=5.0), *rows[2:]])
    assert ": none, within 2x `variant@d4`" in by_loss(block)
    (block,) = blocks_of([*full_records(quality=5.0), *rows[:2]])
    assert by_loss(block) == "", "one row is what the answer says"
    page = render([*full_records(quality=5.0), *rows], tmp_path)
    for shown in (page.read_text(), (page.parent / "table.md").read_text()):
        assert "The fastest row within 1.1x the full model" in shown


def test_one_training_tells_no_recipe_from_another_and_several_seeds_do():
    rows = [*full_records(quality=5.0), make_record(VARIANT, quality=5.0), make_record(FIXED, quality=9.0)]
    said = sentence(rows)
    assert f"one seed of training does not tell its recipe from that of `{FIXED}`" in said
    (block,) = blocks_of(rows)
    by_name = {entry.name: entry for entry in block.entries}
    assert judge_quality(by_name[VARIANT], by_name[FIXED]) == "same"
    assert judge_quality(by_name[FIXED], block.full["lossless"]) == "worse", (
        "beside the full model these weights are meant"
    )
    assert "marks are about these weights" in as_table(rows)
    again = [seeded(record, 1) for record in rows]
    assert f"it is better than `{FIXED}`" in sentence([*rows, *again])
    assert "these weights" not in as_table([*rows, *again])


def test_rows_of_one_seed_are_compared_image_by_image():
    """Both rows' images stray together, so that their difference hardly strays: ± 0.2 each, ± 0.02 between them."""
    rng = random.Random(0)
    common = [rng.gauss(0, 0.1) for _ in range(40)]
    full, upstream = full_records(quality=5.0)
    row = make_record("scale_window@w1", quality=5.1, training=False)

    def difference(*rows):
        (block,) = blocks_of(rows)
        (entry,) = [entry for entry in block.entries if not entry.is_full]
        return score_difference(entry, block.full["lossless"], "FD-shapes")

    theirs = with_swings(full, tuple(common))
    mine = with_swings(row, tuple(swing + rng.gauss(0, 0.01) for swing in common))
    paired, apart = difference(theirs, upstream, mine), difference(full, upstream, row)
    assert paired.value == apart.value == pytest.approx(0.1)
    assert paired.high - paired.low < (apart.high - apart.low) / 8
    assert cells([theirs, upstream, mine], row.row.row)["quality"].tone == "worse"
    assert cells([full, upstream, row], row.row.row)["quality"].tone == "same"
    other_noise = difference(theirs, upstream, seeded(mine, 1))
    assert other_noise == apart, "other noise shares nothing"
    other_network = dataclasses.replace(mine.quality.scores[0], weights_sha256="other")
    foreign = dataclasses.replace(mine, quality=dataclasses.replace(mine.quality, scores=(other_network,)))
    assert difference(theirs, upstream, foreign) == apart


def test_the_page_says_what_an_interval_of_a_score_leaves_out(tmp_path):
    full, upstream = full_records(quality=5.0)
    biased = dataclasses.replace(full.quality.scores[0], bias=0.06)
    full = dataclasses.replace(full, quality=dataclasses.replace(full.quality, scores=(biased,)))
    found = [full, upstream, make_record(quality=5.0)]
    (block,) = blocks_of(found)
    about, training = block.quality_notes
    assert "from 2,000 images, so few that it is about 0.06 too high" in about
    assert "the reference is taken as fixed" in about
    page = render(found, tmp_path).read_text()
    assert about in page
    assert training in page


def test_the_answer_where_nothing_keeps_the_quality_or_is_faster():
    said = against(7.0, 8.0)
    assert said.startswith(f"No faster row keeps the full model's quality: `{VARIANT}` comes nearest")
    said = against(5.0, 5.0, seconds=1.01)
    assert said == "None of 2 rows is faster than the full model by more than the noise of this machine."


def test_the_answer_never_credits_a_row_that_runs_the_full_models_plan():
    records = [*full_records(quality=5.0), make_record("variant@full", seconds=0.5, quality=5.0)]
    assert "not faster than the full model" in sentence(records)


def test_the_answer_where_there_is_little_to_say():
    assert "nothing to compare it with" in sentence(full_records()[:1])
    alone = sentence([make_record()])
    assert "The full model was not measured" in alone
    assert "only row" in alone
    crashed = [make_record(status=r.Status.CRASHED), make_record("variant@d4", verdict=r.Verdict.INVALID)]
    assert sentence(crashed) == "No valid row: of 2 measured, 1 crashed, 1 invalid; these records answer nothing."
    assert "no answer" in sentence([])


def test_the_answer_without_speed_names_the_best_of_what_computes_something_else():
    rows = [
        make_record("variant@untrained/full", quality=5.0),
        make_record("full_var@continued:accounting=upstream", accounting="upstream", quality=4.0),
        make_record("variant@d8", quality=6.0),
        make_record("variant@d2", quality=9.0),
    ]
    without = [dataclasses.replace(record, timing=None) for record in [*full_records(), *rows]]
    assert sentence(without) == (
        "Speed was not measured; `variant@d8` has the best quality of the methods, FD-shapes 6.00 ± 0.20, beside the full model's "
        "5.00 ± 0.20."
    )
    assert "anything but the full model's plan" in sentence(without[:4])


def test_the_answer_without_quality_speaks_of_speed_only():
    random = [*full_records(quality=None), make_record(quality=None)]
    random = [dataclasses.replace(x, model=dataclasses.replace(x.model, weights="random")) for x in random]
    said = sentence(random)
    assert "fastest" in said
    assert "of quality nothing is known, since the weights are random" in said


def test_an_invalid_row_never_answers_and_is_shown_with_its_reason():
    cheat = make_record("cheat", seconds=0.1, quality=1.0, verdict=r.Verdict.INVALID, reasons=("work did not fall",))
    found = [*full_records(quality=5.0), make_record(seconds=0.5, quality=5.0), cheat]
    assert "cheat" not in sentence(found)
    block = blocks_of(found)[0]
    assert [entry.trouble for entry in block.entries if entry.name == "cheat"] == ["invalid: work did not fall"]
    assert cells(found, "cheat")["speedup"].tone == ""  # not praised
    points = figures_trade_off.quality_against_speed(block).cells[0].spec["data"]["values"]
    assert {point["row"] for point in points if not point["valid"]} == {"cheat"}
    drawn = [
        layer
        for layer in figures_trade_off.quality_against_speed(block).cells[0].spec["layer"]
        if "interpolate" in layer["mark"]
    ]
    assert "cheat" not in {point["row"] for point in drawn[0]["data"]["values"]}


def test_quick_looks_and_other_conditions_stand_apart():
    quick = dataclasses.replace(make_record(), protocol=dataclasses.replace(make_record().protocol, quick=True))
    own = dataclasses.replace(make_record("code"), protocol=dataclasses.replace(make_record().protocol, top_k=600))
    blocks = blocks_of([*full_records(), make_record(), quick, own])
    assert [len(block.entries) for block in blocks] == [3, 1, 1]
    assert any(answer(block).startswith("Quick look, not a result: the full model") for block in blocks)


def test_a_row_of_the_table_and_of_a_study_stands_in_both_and_counts_once():
    both = make_record("zones@a", quality=6.0, training=False)
    both = dataclasses.replace(both, row=dataclasses.replace(both.row, also_in="zones"))
    other = make_record("zones@b", quality=7.0, study="zones", training=False)
    (block,) = blocks_of([*full_records(), both, other])
    assert "zones@a" in [entry.name for entry in block.entries]
    assert [entry.name for entry in block.studies["zones"]] == ["zones@a", "zones@b"]
    assert [entry.name for entry in block.everything].count("zones@a") == 1


def test_a_row_that_a_study_asked_for_and_one_that_a_person_did_are_repeats_of_one():
    asked = make_record("zones@a", quality=6.0, study="zones", training=False)
    again = make_record("zones@a", quality=6.4, training=False)
    again = dataclasses.replace(again, protocol=dataclasses.replace(again.protocol, seed=1))
    for records in ([asked, again], [again, asked]):
        (block,) = blocks_of([*full_records(), *records])
        (entry,) = block.studies["zones"]
        assert len(entry.complete) == 2 and entry.quality.value == pytest.approx(6.2)
        assert entry in block.entries and block.everything.count(entry) == 1
        (figure,) = figures_study.studies(block)
        assert figure.title == "The zones study"


def test_repeats_become_one_row_with_a_wider_interval():
    seeds = []
    for seed, quality in enumerate((5.0, 6.0, 7.0)):
        for record in (*full_records(quality=5.0), make_record(quality=quality)):
            protocol = dataclasses.replace(record.protocol, seed=seed)
            seeds.append(dataclasses.replace(record, protocol=protocol, run=f"run-{seed}"))
    entry = next(entry for entry in blocks_of(seeds)[0].entries if entry.name == VARIANT)
    assert len(entry.records) == 3
    assert entry.quality.value == pytest.approx(6.0)
    assert entry.quality.high - 6.0 > 2  # Student's for three seeds, not the 0.2 of one
    assert "comes nearest" in sentence(seeds) or "Deploy" in sentence(seeds)


def test_repeats_under_one_seed_are_no_surer_than_one_of_them():
    """Their images are of one noise."""

    def width(*seeds):
        made = [
            dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, seed=seed), run=f"run-{number}")
            for number, seed in enumerate(seeds)
            for record in (*full_records(), make_record(quality=6.0 + seed / 100))
        ]
        entry = next(entry for entry in blocks_of(made)[0].entries if entry.name == VARIANT)
        assert len(entry.records) == len(seeds)
        return entry.quality.high - entry.quality.low

    assert width(0, 0, 0) == pytest.approx(width(0))
    assert width(0, 0, 1, 1) == pytest.approx(width(0, 1))
    assert width(0, 1, 2) < width(0)


def test_speed_against_both_denominators_and_work_as_a_share():
    found = cells([*full_records(), make_record(seconds=0.5)], VARIANT)
    assert float(found["speedup"].text[:-1]) == pytest.approx(2.0, rel=0.02)
    assert float(found["speedup_upstream"].text[:-1]) == pytest.approx(2.1, rel=0.02)
    assert found["speedup"].tone == "better"
    assert found["work"].text.endswith("%")
    assert cells(full_records(), "full_var")["speedup"].text == "1.00x"


def test_what_drifts_between_children_does_not_change_a_speedup():
    """The row's children ran at half speed, and the full model's plan in them too."""
    slow = [
        make_record("full_var", seconds=1.0, denominator="lossless"),
        make_record("full_var:accounting=upstream", seconds=1.2, denominator="upstream", accounting="upstream"),
        make_record("m", seconds=1.0, full_seconds=2.0),
    ]
    slow[2] = dataclasses.replace(slow[2], plan=None)  # a plan of its own, which is not pooled with the full model's
    (block,) = blocks_of(slow)
    entry = next(entry for entry in block.entries if entry.name == "m")
    assert entry.speedups["lossless"].value == pytest.approx(2.0, rel=0.05)
    assert entry.speedups["upstream"].value == pytest.approx(2.4, rel=0.05)


def test_missing_is_a_dash_with_the_recorded_reason():
    hides = make_record(memory=None, missing={"memory": "no memory pass: out of disk"})
    found = cells([*full_records(), hides], VARIANT)
    assert found["memory"].text is None
    assert found["memory"].note == "no memory pass: out of disk"
    assert found["state"].note == "no memory pass: out of disk"
    crashed = cells([*full_records(), make_record(status=r.Status.CRASHED)], VARIANT)
    assert crashed["speedup"].note == "the child did not finish"


@pytest.mark.parametrize(
    ("name", "weights", "n", "shown"),
    [
        ("FID", "6726825d" + "0" * 56, 50_000, "FID"),
        ("FID", "6726825d" + "0" * 56, 2_000, "FID-2000"),
        ("FID", "a" * 64, 50_000, "Fréchet distance (shapes-classifier)"),
        ("FD-shapes", "a" * 64, 2_000, "FD-shapes"),
    ],
)
def test_a_score_is_named_for_what_it_is(name, weights, n, shown):
    score = dataclasses.replace(make_record().quality.scores[0], name=name, weights_sha256=weights, n=n)
    assert score_label(score) == shown


def test_published_figures_stand_in_the_table_with_grade_source_and_conditions():
    lines = (
        r.PublishedLine(
            figures={"fid": 2.97, "kv_saving": 0.8}, grade="primary", source="a paper", conditions="an L20"
        ),
        r.PublishedLine(figures={"fid": 2.67, "likes": 12}, grade="secondary", source="a note"),
    )
    record = make_record(published=lines)
    shown = cells([record], VARIANT)["published"]
    assert shown.text == "FID 2.97, cache saving 80% [primary]; FID 2.67, likes 12 [secondary]"
    assert "a paper, an L20" in shown.note and "a note" in shown.note
    assert "published" not in cells([make_record()], VARIANT)
    quick = dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, quick=True))
    assert "published" not in cells([quick], VARIANT)


def test_a_recipe_that_trains_nothing_is_named():
    untrained = make_record("code@training_free/n8", training=False)
    untrained = dataclasses.replace(untrained, row=dataclasses.replace(untrained.row, recipe=None))
    assert cells([*full_records(), untrained], "code@training_free/n8")["setting"].text == "training_free/n8"


def test_a_joined_row_shows_every_methods_setting():
    found = cells([*full_records(), make_record("variant@d8+scalekv@b10:budget=3")], "variant@d8+scalekv@b10:budget=3")
    assert found["setting"].text == "d8 + b10"


def test_the_frontier_is_what_nothing_beats_in_both():
    points = [{"x": x, "y": y} for x, y in ((1, 5), (2, 5.1), (2, 6), (1.5, 7), (3, 9))]
    best = figures_trade_off.frontier(points, more_is_better_x=True, more_is_better_y=False)
    assert [(point["x"], point["y"]) for point in best] == [(1, 5), (2, 5.1), (3, 9)]
    less = figures_trade_off.frontier(points, more_is_better_x=False, more_is_better_y=True)
    assert [(point["x"], point["y"]) for point in less] == [(1, 5), (1.5, 7), (3, 9)]


def test_a_method_that_has_several_curves_has_a_line_for_each(tmp_path):
    def lines(curves):
        records = full_records()
        for point, seconds, curve in (
            ("r30", 0.8, "pruned"),
            ("r60", 0.6, "pruned"),
            ("skip1", 0.7, "skipped"),
            ("skip2", 0.4, "skipped"),
        ):
            record = make_record(f"thin@{point}", seconds=seconds)
            record = dataclasses.replace(record, row=dataclasses.replace(record.row, curve=curve if curves else None))
            records.append(record)
        render(records, tmp_path / str(curves))
        drawn = next((tmp_path / str(curves)).rglob("quality-speed.svg")).read_text()
        return len(re.findall(r'<path d="M[^"]*" stroke="[^"]*" stroke-width="1.5" opacity="0.35"', drawn))

    assert lines(curves=True) == lines(curves=False) + 1


def demonstration():
    """One of everything a page can show."""
    found = full_records(quality=5.0)
    found[0] = dataclasses.replace(found[0], timing=dataclasses.replace(found[0].timing, discarded=1234))
    for point, seconds, quality in (("full", 1.0, 4.9), ("d8", 0.5, 5.1), ("d2", 0.3, 9.0)):
        found.append(make_record(f"variant@{point}", seconds=seconds, quality=quality))
        found.append(make_record(f"fixed_ratio@p05/{point}", seconds=seconds, quality=quality + 0.5))
    found.append(make_record("leaky", seconds=0.2, quality=4.0, verdict=r.Verdict.INVALID, reasons=("it hid state",)))
    found.append(make_record("hangs", status=r.Status.TIMEOUT))
    for zone, quality in (("early", 15.0), ("middle", 9.0), ("late", 6.0)):
        study = make_record(f"zones@{zone}", quality=quality, study="scale_depth_asymmetry", training=False)
        found.append(study)
    return found


def test_a_report_has_every_promised_file_and_its_figures_are_drawn(tmp_path):
    page = render(demonstration(), tmp_path)
    folder = page.parent
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    figures_found = {name for name in names if name.startswith("figures/")}
    assert figures_found == {
        f"figures/{name}"
        for name in (
            "quality-speed.svg",
            "quality-memory.svg",
            "recipes.svg",
            "plans.svg",
            "memory.svg",
            "time-per-scale.svg",
            "training.svg",
            "study-scale-depth-asymmetry.svg",
            "latency.svg",
            "predicted.svg",
            "losses.svg",
            "samples.png",
        )
    }
    for name in figures_found - {"figures/samples.png"}:
        svg = (folder / name).read_text()
        assert svg.count("<path") > 4, name
        assert "currentColor" not in svg, name
    assert {"table.md", "table.tex", "table.json", "records.csv", "records.parquet", "report.json"} <= names
    markdown, latex = ((folder / f"table.{kind}").read_text() for kind in ("md", "tex"))
    assert "| variant" in markdown and "▲ ▼ better or worse than the full model" in markdown
    assert re.search(r"\| 2\.0\dx ± 0\.\d\d ▲ +\|", markdown), "there is no hover that says the rest"
    assert re.search(r"2\.0\dx \$\\pm\$ 0\.\d\d", latex) and "▲" not in latex
    assert "\\toprule" in (folder / "table.tex").read_text()
    assert "invalid: it hid state" in (folder / "table.md").read_text()
    lines = {line["row"]: line for line in json.loads((folder / "table.json").read_text())}
    assert lines["variant@d8"]["speedup"] == pytest.approx(2.0, rel=0.02)
    low, high = lines["variant@d8"]["intervals"]["speedup"]
    assert low < lines["variant@d8"]["speedup"] < high
    assert lines["variant@d8"]["intervals"]["quality"] == pytest.approx([4.9, 5.3])
    assert {"batch", "latency"} <= lines["variant@d8"]["intervals"].keys()
    assert lines["hangs"]["speedup"] is None
    assert lines["hangs"]["intervals"] == {}
    assert lines["hangs"]["missing"]["speedup"] == "the child did not finish"
    html = page.read_text()
    assert "1,234, since a call was held up" in html
    assert len(html) < 3_000_000
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", html)


def test_measured_times_stand_beside_predicted_ones_in_a_table(tmp_path):
    def foreseen_by(source, *, bound, **changes):
        rows = [
            make_record(seconds=0.25),
            make_record("variant@d2", verdict=r.Verdict.INVALID, reasons=("it was hot",)),
        ]
        return [
            dataclasses.replace(
                record, plan=dataclasses.replace(record.plan, hardware_source=source, bound=bound, **changes)
            )
            for record in (*full_records(), *rows)
        ]

    day = "measured by varbench env --calibrate on 2026-11-20"
    page = render(foreseen_by(day, bound=False), tmp_path / "measured")
    text = (page.parent / "predicted.md").read_text()
    assert f"predicted by the plan for Example CPU ({day})." in text
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    batch, predicted, measured, quotient = cells["variant@d8"]
    assert (batch, predicted) == ("64", "200") and measured.startswith("2") and " ± " in measured
    assert float(quotient) == pytest.approx(1.25, abs=0.02)
    assert "full_var" in cells and "variant@d2" not in cells, "what is not believed is held against nothing"
    assert "predicted.md" in page.read_text()

    sheet = render(foreseen_by("maker's data sheet", bound=True), tmp_path / "sheet")
    assert "Example CPU (maker's data sheet; a bound)." in (sheet.parent / "predicted.md").read_text()
    none = render(foreseen_by(None, bound=None, predicted_seconds=None), tmp_path / "none")
    assert not (none.parent / "predicted.md").exists() and "predicted.md" not in none.read_text()


def test_csv_and_parquet_hold_every_record(tmp_path):
    import pandas as pd

    found = demonstration()
    folder = render(found, tmp_path).parent
    assert not any(speedups._KNOWN), "records of a page that is done are let go"
    csv, parquet = pd.read_csv(folder / "records.csv"), pd.read_parquet(folder / "records.parquet")
    assert len(csv) == len(parquet) == len(found)
    assert list(csv["row.row"]) == [record.row.row for record in found]
    assert list(csv) == list(parquet)
    assert list(csv["timing.throughput.transformer.median"].dropna()) == [
        column.median
        for record in found
        if (column := speedups.timing_column(record, "transformer", "throughput")) is not None
    ]
    raw = (".rounds", ".beside", ".swings", ".losses")
    assert not [name for name in csv if name.endswith(raw) and not name.startswith("protocol.")], "raw lists"
    assert list(csv["protocol.rounds"]) == [record.protocol.rounds for record in found], "an option of that name"
    assert parquet["quality.FD-shapes.value"].notna().sum() == sum(record.quality is not None for record in found)


def test_of_many_samples_a_strip_shows_as_many_as_can_be_told_apart_from_the_fastest_to_the_slowest():
    def drawn(repeats):
        found = [
            dataclasses.replace(one, run=f"run-{number}")
            for number in range(repeats)
            for one in (
                make_record("full_var", denominator="lossless"),
                make_record("variant@d8", seconds=0.3 + number / 1e3),
            )
        ]
        (block,) = blocks_of(found)
        figure = figures_speed.latency_distributions(block)
        shown = [one["ms"] for one in figure.cells[0].spec["data"]["values"] if one["row"].startswith("variant")]
        timed = [
            round(second * 1e3, 4)
            for record in found
            if record.row.row == "variant@d8"
            for taken in speedups.timing_column(record, "transformer", "throughput").rounds
            for second in taken
        ]
        return shown, sorted(timed), figure.caption

    few, all_of_few, caption = drawn(2)
    assert sorted(few) == all_of_few and "evenly chosen" not in caption
    many, all_of_many, caption = drawn(100)
    assert len(all_of_many) > figures_speed.MOST_TICKS == len(many) and "120 at most, evenly chosen" in caption
    assert (many[0], many[-1]) == (all_of_many[0], all_of_many[-1]) and set(many) < set(all_of_many)
    assert stats.median(many) == pytest.approx(stats.median(all_of_many), rel=0.01)


def test_the_chart_library_is_put_together_once_on_a_machine_and_nothing_else_in_its_place_is_taken(
    tmp_path, monkeypatch
):
    import vl_convert

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put_together: list[str] = []

    def bundle(asked: str) -> str:
        put_together.append(asked)
        return "library </script"

    def script() -> str:
        chart_library.script.cache_clear()
        return chart_library.script()

    monkeypatch.setattr(vl_convert, "javascript_bundle", bundle)
    release = chart_library.version("vl-convert-python")
    try:
        monkeypatch.setattr(chart_library, "SHA256", {})
        assert script() == script() == "library <\\/script"
        assert len(put_together) == 2 and not (tmp_path / "varbench").exists(), (
            "of a release that nobody knows none is kept"
        )
        known = hashlib.sha256(b"library </script").hexdigest()
        monkeypatch.setattr(chart_library, "SHA256", {release: known})
        assert script() == script() == "library <\\/script" and len(put_together) == 3
        (kept,) = (tmp_path / "varbench" / "scripts").iterdir()
        kept.write_text("another's")
        assert script() == "library <\\/script" and len(put_together) == 4
    finally:
        chart_library.script.cache_clear()


def test_the_chart_library_is_what_it_is_known_as():
    import vl_convert

    release = chart_library.version("vl-convert-python")
    if release not in chart_library.SHA256:
        pytest.skip(
            f"vl-convert {release} is newer than what is known, so its script is not kept: give its hash in SHA256"
        )
    made = vl_convert.javascript_bundle(chart_library._ASKED)
    assert chart_library.SHA256[release] == hashlib.sha256(made.encode()).hexdigest()


def test_a_report_is_made_again_from_its_own_records(tmp_path):
    first = render(demonstration(), tmp_path / "a")
    loaded = r.load_records([first.parent / "records"])
    assert loaded.problems == ()
    second = render(loaded.records, tmp_path / "b")
    tables = [json.loads((page.parent / "table.json").read_text()) for page in (first, second)]
    assert sorted(tables[0], key=str) == sorted(tables[1], key=str)


def test_no_report_is_overwritten_but_the_same_one_is_made_anew(tmp_path):
    first = render([*full_records(), make_record()], tmp_path)
    again = render([*full_records(), make_record()], tmp_path)
    other = render([*full_records(), make_record(seconds=0.25)], tmp_path)
    assert first == again
    assert other.parent.name == first.parent.name + "-2"
    (tmp_path / "2026-11-21T12-00-00-3").mkdir()
    (tmp_path / "2026-11-21T12-00-00-3" / "notes.txt").write_text("mine")
    third = render([*full_records(), make_record(seconds=0.2)], tmp_path)
    assert third.parent.name.endswith("-4")
    assert not list(tmp_path.glob(".*"))
    index = (tmp_path / "index.html").read_text()
    assert index.count('<tr><th scope="row">') == 3
    assert "Deploy" in index


def test_an_interrupted_report_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("varbench.show.outputs._write_foreseen", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        render(full_records(), tmp_path)
    assert list(tmp_path.iterdir()) == []


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_strangers_strings_are_only_text(tmp_path):
    record = make_record(f"{EVIL}@{EVIL}", metrics={f"p.{EVIL}": make_score(EVIL, 1.0, 0.1, n=20)}, command=EVIL)
    record = dataclasses.replace(
        record,
        warnings=(r.Notice(text=EVIL, next_command=EVIL),),
        provenance=r.MethodSource(kind=EVIL, note=EVIL),
    )
    bars = {"data": {"values": [{"a": EVIL, "b": 1}]}, "mark": "bar", "encoding": {"y": {"field": "a"}}}
    parts = [Text(text=EVIL), Table(columns=(EVIL,), rows=[(EVIL,)]), Chart(spec=bars, alt=EVIL)]
    panel = Panel(source=EVIL, section=Section(title=EVIL, parts=parts))
    silent = PluginPanels(panels=(), silent=(EVIL,))
    page = render([*full_records(), record], tmp_path, panels=[panel], problems=[EVIL], plugins=lambda: silent)
    for path in (page, tmp_path / "index.html", page.parent / "table.md"):
        assert "<script>alert" not in path.read_text()
        assert "<img src=x" not in path.read_text()
    assert "&lt;script&gt;alert(1)" in page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.read_text())[1]
    assert "default-src &#39;none&#39;" in policy
    assert "&#39;unsafe-inline&#39;; img-src data:" in policy


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (Chart(spec={"data": {"url": "https://example.org/x.json"}}, alt="a"), "'url'"),
        (Chart(spec={"usermeta": {"embedOptions": {}}}, alt="a"), "'usermeta'"),
        (Chart(spec={"layer": [{"encoding": {"href": {"field": "x"}}}]}, alt="a"), "'href'"),
        (Image(png=b"<svg onload=alert(1)>", alt="a"), "not a PNG"),
        (Table(columns=("a", "b"), rows=[("1",)]), "1 cells under 2 columns"),
        ("<b>html</b>", "is a str"),
        (Chart(spec="bars", alt="a"), "part 1 of section 'mine': spec is a str; give a dict"),
        (Table(columns="ab", rows=[]), "columns is a str; give a list"),
        (Text(text=None), "text is a NoneType; give a str"),
    ],
)
def test_a_panel_cannot_reach_out_and_says_so(part, says):
    with pytest.raises(UserError, match=re.escape(says)):
        checked(Section(title="mine", parts=[part]))
    shown = given([Section(title="mine", parts=[part]), Section(title="good", parts=[Text(text="t")])])
    assert "cannot be shown" in shown[0].parts[0].text
    assert shown[1].title == "good"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (Section(title=3, parts=[]), "title is a int; give a str"),
        (Section(title="mine", parts=Text(text="t")), "parts is a Text; give a list"),
    ],
)
def test_a_section_of_other_types_says_so(section, says):
    with pytest.raises(UserError, match=says):
        checked(section)
    assert "cannot be shown" in given([section])[0].parts[0].text


def test_data_of_a_panels_chart_may_hold_any_word():
    spec = {"data": {"values": [{"url": "a", "n": 1}]}, "mark": "bar", "encoding": {"x": {"field": "n"}}}
    assert checked(Section(title="t", parts=[Chart(spec=spec, alt="a")]))


SVG = "{http://www.w3.org/2000/svg}"


def stills_of(html):
    """The static figures of a page, by their charts' names."""
    found = re.findall(r'data-chart="([^"]+)"><div class="still">(<svg.*?</svg>)</div>', html, re.DOTALL)
    return {name: ElementTree.fromstring(svg) for name, svg in found}


def test_the_page_holds_a_picture_of_every_chart_in_shapes_and_text(tmp_path):
    html = render(demonstration(), tmp_path).read_text()
    pictures = stills_of(html)
    assert pictures.keys() == payload_of(html)["charts"].keys()
    assert len(pictures) >= 25
    for name, picture in pictures.items():
        assert len(list(picture.iter(f"{SVG}path"))) > 2, name
        assert [text.text for text in picture.iter(f"{SVG}text")], name
        assert {element.tag.removeprefix(SVG) for element in picture.iter()} <= {
            "svg", "g", "path", "rect", "line", "circle", "text", "tspan", "defs", "clipPath",
        }  # fmt: skip
        assert picture.get("role") == "img" and picture.get("aria-label"), name
    said = " ".join(text.text or "" for text in pictures["quality-speed-0"].iter(f"{SVG}text"))
    assert "variant@d8" in said


def test_ids_of_pictures_do_not_collide():
    line = {"type": "line", "clip": True}
    values = [{"a": 0, "b": 1}, {"a": 1, "b": 5}]
    spec = {"data": {"values": values}, "mark": line, "width": 90, "height": 60}
    spec["encoding"] = {axis: {"field": name, "type": "quantitative"} for axis, name in (("x", "a"), ("y", "b"))}
    pictures = [ElementTree.fromstring(still(spec, alt="a", name=name)) for name in ("one", "two")]
    ids = [element.get("id") for picture in pictures for element in picture.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) >= 2
    used = {element.get("clip-path") for picture in pictures for element in picture.iter()} - {None}
    assert used == {f"url(#{name})" for name in ids}


def bars():
    return {"data": {"values": [{"n": 1}]}, "mark": "bar", "encoding": {"x": {"field": "n", "type": "quantitative"}}}


def test_a_picture_is_drawn_by_a_process_beside_as_it_would_be_here(monkeypatch):
    here = still(bars(), alt="a", name="one")
    with stills.DrawnBeside() as beside:
        asked = [beside.ask(bars(), alt="a", name="one"), beside.ask({"mark": "none such"}, alt="a", name="two")]
        monkeypatch.setattr("vl_convert.vegalite_to_svg", lambda *_: pytest.fail("drawn in the process that waits"))
        assert asked[0]() == here
        with pytest.raises(UserError, match="cannot draw"):
            asked[1]()


def test_a_process_that_draws_and_dies_costs_time_only():
    stills._processes.cache_clear()  # one that is this test's alone
    with stills.DrawnBeside() as beside:
        beside.ask(bars(), alt="a", name="one")()
        for process in list(stills._processes()._processes.values()):
            process.kill()
            process.join()
        after = [beside.ask(bars(), alt="a", name=name)() for name in ("two", "three")]
    assert after == [still(bars(), alt="a", name=name) for name in ("two", "three")]
    stills._processes.cache_clear()


def test_what_nobody_waits_for_any_more_is_not_drawn():
    with stills.DrawnBeside() as beside:
        for number in range(200):
            beside.ask(bars(), alt="a", name=f"n{number}")
    assert sum(future.cancelled() for future in beside._asked) > 100


def test_a_chart_that_is_none_costs_itself_only(tmp_path):
    parts = [Chart(spec={"mark": "no such mark", "data": {"values": []}}, alt="a"), Text(text="still here")]
    panel = Panel(source="p (d 1.0)", section=Section(title="mine", parts=parts))
    html = render(full_records(), tmp_path, panels=[panel]).read_text()
    assert "A chart of this panel cannot be shown" in html
    assert "still here" in html


def crowd(count):
    """Rows that lie close together, under long names."""
    found = full_records(quality=5.0)
    for number in range(count):
        row = f"crowded_method@recipe{number}/d8:budget={number % 7}"
        found.append(make_record(row, seconds=0.5 + number % 5 / 200, quality=5.1 + number % 3 / 50))
    return found


@pytest.mark.parametrize("which", ["recorded", "crowd"])
def test_names_of_points_never_overlap_at_any_width(which):
    folder = Path(__file__).parents[1] / "reports" / "tiny" / "trained" / "records"
    records = r.load_records([folder]).records if which == "recorded" else crowd(40)
    (block, *_) = blocks_of(records)
    figures = (figures_trade_off.quality_against_speed(block), figures_trade_off.quality_against_memory(block))
    for spec in (cell.spec for figure in figures for cell in figure.cells):
        named = spec["layer"][-1]["data"]["values"]
        domain = {axis: spec["layer"][-1]["encoding"][axis]["scale"] for axis in ("x", "y")}

        def at(value, axis, domain=domain):
            low, high = domain[axis]["domain"]
            log = math.log if domain[axis].get("type") == "log" else float
            return (log(value) - log(low)) / (log(high) - log(low))

        for width in (230, 300, 379, 380, 470, 559, 560, 700, 1100):
            boxes = []
            for name in (name for name in named if name["least"] <= width < name["most"]):
                x = width * at(name["x"], "x") + name["dx"]
                y = spec["height"] * (1 - at(name["y"], "y")) + name["dy"]
                length = labels.LETTER * len(name["name"])
                left = x if name["align"] == "left" else x - length
                assert -1e-6 <= left and left + length <= width + 1e-6
                boxes.append((left, y - labels.LINE / 2, left + length, y + labels.LINE / 2))
            for one, other in itertools.combinations(boxes, 2):
                apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
                assert apart, (width, one, other)
            if width >= 560:
                assert len(boxes) >= (10 if which == "recorded" else 5), "names were left out although there is room"
    assert figures == (
        figures_trade_off.quality_against_speed(block), figures_trade_off.quality_against_memory(block)
    )  # fmt: skip


def test_what_keeps_less_is_drawn_over_the_share_that_it_keeps():
    folder = Path(__file__).parents[1] / "reports" / "tiny" / "all-methods" / "records"
    records = r.load_records([folder]).records
    (block, *_) = blocks_of(records)
    figure = figures_trade_off.quality_against_cache(block)
    read, every = ({point["row"]: point["x"] for point in cell.spec["data"]["values"]} for cell in figure.cells)
    assert read["full_var"] == 100 and every["full_var"] == pytest.approx(100 * 66 / 130, abs=0.1)
    assert read["streaming@b10"] == pytest.approx(100 * 7 / 66, abs=0.1)
    assert every["streaming@b10"] == pytest.approx(100 * 7 / 130, abs=0.1)
    families = {name.partition("@")[0] for name in read}
    assert families >= {"streaming", "h2o", "snapkv", "hack", "scalekv", "scale_window", "quant_cache"}
    assert not families & {"variant", "guidance", "smaller", "code", "fastvar"}, "these compute something else"
    without = [record for record in records if record.row.row.startswith(("full_var", "variant"))]
    (block, *_) = blocks_of(without)
    assert figures_trade_off.quality_against_cache(block) is None


def test_sections_survive_the_way_through_json():
    png = b"\x89PNG\r\n\x1a\n rest"
    parts = [
        Text(text="a"), Table(columns=("n", "s"), rows=[(1.5, r.Status.COMPLETE)]),
        Chart(spec={"mark": "bar"}, alt="c"), Image(png=png, alt="i"),
    ]  # fmt: skip
    back = from_data(json.loads(json.dumps(to_data(Section(title="t", parts=parts)))))
    assert back.parts[0] == Text(text="a")
    assert back.parts[1] == Table(columns=["n", "s"], rows=[[1.5, "complete"]])
    assert back.parts[2:] == [Chart(spec={"mark": "bar"}, alt="c"), Image(png=png, alt="i")]
    for lie in (
        {},
        {"title": "t", "parts": [{"kind": "script"}]},
        {"title": "t", "parts": [{"kind": "image", "png": "PHN2Zz4=", "alt": ""}]},
    ):
        with pytest.raises(UserError):
            from_data(lie)


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Installs a distribution with one plugin a module, and gives those plugins."""
    site = tmp_path / "site"

    def install(**modules):
        about = site / "strangers-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
        points = "".join(f"{name} = stranger_{name}\n" for name in modules)
        (about / "entry_points.txt").write_text(f"[varbench]\n{points}")
        for name, source in modules.items():
            (site / f"stranger_{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(site))
        return PluginManager([point for point in entry_points(group="varbench") if point.name in modules])

    return install


def test_a_plugin_can_add_to_the_page_and_change_nothing_on_it(tmp_path, plugins):
    found = plugins(
        liar="""
            import atexit, gc
            from varbench.record import Record
            from varbench.record.sections import Section, Text

            def rewrite(records):
                for record in records:
                    for score in record.quality.scores if record.quality else ():
                        object.__setattr__(score, "value", 0.12)

            atexit.register(lambda: rewrite([thing for thing in gc.get_objects() if isinstance(thing, Record)]))

            def varbench_report_sections(records):
                rewrite(records)
                print("not an answer")
                value = records[0].quality.scores[0].value
                return [Section(title="Mine", parts=[Text(text=f"I say {value}")])]
            """
    )
    records = demonstration()
    given = plugin_panels(r.Encoded.of(records).texts, plugins=found)
    assert given.silent == ()
    plain = render(records, tmp_path / "plain")
    page = render(records, tmp_path / "with", plugins=lambda: given)
    html = page.read_text()
    assert "I say 0.12" in html
    assert "liar (strangers 1.0)" in html
    for name in ("table.json", "report.json", "records.csv"):
        assert (page.parent / name).read_text() == (plain.parent / name).read_text()
    assert payload_of(html)["records"] == payload_of(plain.read_text())["records"]


def test_the_process_of_panels_imports_nothing_that_lies_in_the_users_folder(tmp_path):
    """As where the user stands in a checkout of another varbench. In a process of its own, since forks have one origin."""
    folder, tool = tmp_path / "folder", tmp_path / "tool.py"
    folder.mkdir()
    (folder / "varbench.py").write_text("print('the wrong one', flush=True)")
    tool.write_text(
        "from varbench.rows.manager import PluginManager\n"
        "from varbench.show.plugin_sections import plugin_panels\n"
        "from importlib.metadata import entry_points\n"
        "one = [point for point in entry_points(group='varbench') if point.name == 'full_var']\n"
        "if __name__ == '__main__': print(plugin_panels([], plugins=PluginManager(one)).silent)\n"
    )
    told = subprocess.run([sys.executable, str(tool)], cwd=folder, capture_output=True, text=True)
    assert told.stdout == "()\n", told.stdout + told.stderr


def test_a_plugin_of_the_page_does_not_stand_in_the_users_folder(tmp_path, plugins, monkeypatch):
    found = plugins(
        stands="""
            from pathlib import Path
            from varbench.record.sections import Section, Text

            def varbench_report_sections(records):
                Path("results.txt").write_text("written over")
                return [Section(title="Where", parts=[Text(text=str(Path.cwd()))])]
            """
    )
    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.chdir(user)
    (user / "results.txt").write_text("the user's")
    given = plugin_panels([], plugins=found)
    assert given.silent == ()
    stood = Path(given.panels[0].section.parts[0].text)
    assert (user / "results.txt").read_text() == "the user's"
    assert stood != user
    assert not stood.exists(), "it was the process's own, and is gone with it"


def test_a_plugin_that_fails_is_one_line_that_names_it(tmp_path, plugins):
    found = plugins(
        breaks="def varbench_report_sections(records):\n    raise KeyError('nothing')",
        gone="import os\ndef varbench_report_sections(records):\n    os._exit(7)",
        hangs="import time\ndef varbench_report_sections(records):\n    time.sleep(600)",
        odd="""
            from varbench.record.sections import Chart, Section
            def varbench_report_sections(records):
                return [Section(title="t", parts=[Chart(spec={"data": {"values": [object()]}}, alt="a")])]
            """,
        torn="import nothing_of_that_name",
        works="""
            from varbench.record.sections import Section, Table
            def varbench_report_sections(records):
                yield Section(title="Rows", parts=[Table(columns=("row",), rows=[(record.row.row,) for record in records])])
            """,
    )
    records = full_records()
    given = plugin_panels(r.Encoded.of(records).texts, plugins=found, seconds=8)
    assert [panel.source for panel in given.panels] == ["works (strangers 1.0)"]
    assert given.panels[0].section.parts[0].rows == [[record.row.row] for record in records]
    assert len(given.silent) == 5
    for reason, (name, says) in zip(
        given.silent,
        (
            ("breaks", "failed: KeyError: 'nothing'"),
            ("gone", "exit code 7"),
            ("hangs", "took longer than 8 s"),
            ("odd", "object is not JSON serializable"),
            ("torn", "No module named 'nothing_of_that_name'"),
        ),
        strict=True,
    ):
        assert reason.startswith(f"plugin '{name}' (strangers")
        assert says.lower() in reason.lower()
    html = render(records, tmp_path / "report", plugins=lambda: given).read_text()
    assert html.count("(strangers") == 6
    assert "Panels that are missing" in html


def test_panels_that_nobody_wants_any_more_are_not_waited_for(plugins):
    found = plugins(hangs="import time\ndef varbench_report_sections(records):\n    time.sleep(600)")
    unwanted = threading.Event()
    threading.Timer(1, unwanted.set).start()
    started = time.monotonic()
    given = plugin_panels([], plugins=found, unwanted=unwanted)
    assert given.panels == () and time.monotonic() - started < 30


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """`varbench report` of records that lie there, with other panels in the place of those of plugins."""
    for record in full_records():
        r.write_record(record, tmp_path / "run")

    def report(panels):
        monkeypatch.setattr(plugin_sections, "plugin_panels", panels)
        places = {"records": [tmp_path / "run"], "out": tmp_path / "out", "paper": None, "compare": None}
        return command.run(argparse.Namespace(**places))

    return report


def test_a_report_has_what_plugins_gave_and_names_those_that_gave_nothing(reported, tmp_path, capsys):
    mine = Panel(source="a plugin", section=Section(title="Mine of all", parts=[Text(text="here")]))
    assert reported(lambda encoded, **given: PluginPanels(panels=(mine,), silent=("plugin 'b' says nothing",))) == 0
    assert "warning: plugin 'b' says nothing" in capsys.readouterr().err
    (page,) = (tmp_path / "out").glob("*/index.html")
    assert "Mine of all" in page.read_text() and "says nothing" in page.read_text()


def test_a_report_that_fails_waits_for_no_plugin(reported, monkeypatch):
    def panels(encoded, *, unwanted):
        assert unwanted.wait(60)
        return PluginPanels(panels=(), silent=())

    def fails(*_, **__):
        raise UserError("no")

    monkeypatch.setattr(outputs, "render", fails)
    started = time.monotonic()
    with pytest.raises(UserError):
        reported(panels)
    assert time.monotonic() - started < 30


def test_the_terminal_table_has_the_pages_marks_and_fits_its_width():
    found = demonstration()
    found.append(make_record("variant@d8+a_rather_long_method_name@setting:budget=3,window=12345/x", seconds=0.5))
    shown = as_table(found)
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert re.search(r"5\.10 ± 0\.20 ≈ .* 2\.\d\dx ± \d\.\d\d ▲", lines["variant@d8"])
    assert "9.00 ± 0.20 ▼" in lines["variant@d2"]
    assert not re.search("[▲▼≈]", lines["full_var"])
    assert not re.search("[▲▼≈]", lines["leaky"]), "what is not valid is not praised"
    assert "from 2,000 images" in shown
    assert max(map(len, shown.splitlines())) <= 150
    ruler = next(line for line in shown.splitlines() if line.startswith("---"))
    names = [line[: len(ruler.split()[0])].strip() for line in shown.splitlines()]
    assert "variant@d8+a_rather_long_method_name@setting:budget=3,window=12345/x" in "".join(names)


def test_a_column_and_a_metric_are_said_once_for_terminal_and_page(monkeypatch, tmp_path):
    usual = columns.columns_of
    more = columns.Column(
        "fresh", "fresh", "a note", lambda entry, block: columns.Cell(text="anew"), terminal="freshly"
    )
    monkeypatch.setattr(columns, "columns_of", lambda block: (*usual(block), more))
    metric = make_score("sharpness.edges", 4.5, 0.5, n=20)
    found = [*full_records(), dataclasses.replace(make_record(VARIANT), metrics={"sharpness.edges": metric})]
    shown, page = as_table(found), render(found, tmp_path).read_text()
    headings = [line for line in shown.splitlines()[:5] if not line.startswith("---")]
    assert [any(name in line.split() for line in headings) for name in ("freshly", "sharpness", "edges")] == [True] * 3
    (line,) = [line for line in shown.splitlines() if line.startswith(VARIANT)]
    assert "4.50 ± 0.50" in line and "anew" in line
    assert shown.count("4.50 ± 0.50") == 1
    for name, text in (("fresh", "anew"), ("sharpness.edges", "4.50 ± 0.50")):
        assert f">{name}</button>" in page and text in page


def test_the_terminal_has_the_planned_state_where_none_was_measured():
    record = make_record(VARIANT)
    quick = dataclasses.replace(record, memory=None, trace=None, missing={"memory": "a quick look leaves it out"})
    (line,) = [line for line in as_table([*full_records(), quick]).splitlines() if line.startswith(VARIANT)]
    planned = record.plan.totals
    assert (
        line.count(formatting.size(planned.state_peak_bytes)) == 2
        and planned.state_end_bytes == planned.state_peak_bytes
    )


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called():
    assert shlex.split(report_command(Path("my runs/it's new")))[-1] == "my runs/it's new"
    assert report_command(Path("runs/a")) == "varbench report --records runs/a"


def payload_of(html):
    packed = re.search(r'id="payload">([^<]+)<', html)[1]
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.mark.slow
def test_a_thousand_records_take_seconds_and_fit(tmp_path):
    found = full_records(quality=5.0)
    for number in range(998):
        points = ("d16", "d8", "d4", "d2")
        row = f"m{number % 40}@p{number // 40:02d}/{points[number % 4]}"
        found.append(make_record(row, seconds=0.3 + number % 70 / 100, quality=4 + number % 97 / 10))
    start = time.process_time()
    page = render(found, tmp_path)
    assert time.process_time() - start < 60  # about 6 s on a quiet machine
    html = page.read_text()
    assert len(html) < 5_600_000  # 5.5 kB a record
    assert html.count('data-entry="') == 1000
    data = payload_of(html)
    assert data["trimmed"]
    assert len(data["records"]) == 1000
    assert "rounds" not in data["records"][5]["timing"]["columns"][0]
    assert not {"calls", "drawn"} & data["records"][5]["timing"].keys()
    small = payload_of(render(found[:5], tmp_path).read_text())
    assert not small["trimmed"]
    assert small["records"][3]["timing"]["columns"][0]["rounds"]
    assert {"calls", "drawn"} <= small["records"][3]["timing"].keys()


def test_the_command_takes_the_newest_run_and_can_stand_beside_an_older_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())

    def run(*flags):
        args = parser.parse_args(["report", *flags])
        return args.run(args), capsys.readouterr()

    with pytest.raises(UserError, match="no run under varbench-runs"):
        run()
    for name, seconds in (("old", 0.6), ("new", 0.5)):
        for record in (*full_records(), make_record(seconds=seconds)):
            r.write_record(dataclasses.replace(record, run=name), tmp_path / "varbench-runs" / name)
        time.sleep(0.02)
    (tmp_path / "varbench-runs" / "new" / "torn-0000000000.json").write_text("{")
    code, said = run()
    assert code == 0
    assert said.out.strip() == "reports/new/index.html"
    assert "torn" in said.err
    assert "torn-0000000000.json" in (tmp_path / "reports/new/index.html").read_text()
    code, said = run("--compare", "varbench-runs/old", "--out", "elsewhere")
    html = (tmp_path / said.out.strip()).read_text()
    assert "Against old" in html
    assert "improved" in html
    with pytest.raises(UserError, match="no such file"):
        run("--records", "nowhere")


def test_plans_of_real_rows_are_summarised_as_the_cost_model_counts_them():
    from varbench.plan import cost
    from varbench.plan.compiler import compile_plan
    from varbench.plan.hardware import KNOWN
    from varbench.plan.presets import preset
    from varbench.rows.grammar import resolve

    spec = preset("var-d30").spec
    plans = {}
    for name in ("full_var", "variant@d8"):
        row = resolve(name, spec)
        plans[name] = compile_plan(spec, row.policies)
    shown = plan_summary(plans["variant@d8"], batch=64, dtype="bfloat16", hardware=KNOWN["L20"])
    full = plan_summary(plans["full_var"], batch=64, dtype="bfloat16")
    counted = cost.work(plans["variant@d8"], batch=64, dtype="bfloat16")
    assert shown.totals.flops == counted.transformer_flops
    assert len(shown.steps) == 10
    assert [run.layers for run in full.steps[0].calls] == [tuple(range(30))]
    assert sum(len(run.layers) for run in shown.steps[-1].calls) == 8
    assert shown.totals.state_end_bytes / 2**20 == pytest.approx(3180, rel=0.001)
    assert full.totals.state_end_bytes / 2**20 == pytest.approx(11925, rel=0.001)
    assert (
        shown.predicted_seconds
        < plan_summary(plans["full_var"], batch=64, dtype="bfloat16", hardware=KNOWN["L20"]).predicted_seconds
    )
    assert full.predicted_seconds is None


def test_resident_memory_is_a_side_column_of_the_rows_own_that_is_not_judged(tmp_path):
    """Last of the memory columns, not pooled over a plan's rows as the peak is, on no terminal, and nowhere on a GPU."""
    grown = {VARIANT: (3 << 20, 5 << 20), FIXED: (9 << 20, 7 << 20)}
    found = full_records()
    for name, counts in grown.items():
        for seed, count in enumerate(counts):
            record = make_record(name)
            memory = dataclasses.replace(record.memory, rss_growth_bytes=count)
            protocol = dataclasses.replace(record.protocol, seed=seed)
            found.append(dataclasses.replace(record, memory=memory, protocol=protocol))
    ours, theirs = (cells(found, name) for name in grown)
    assert (ours["resident"].text, theirs["resident"].text) == ("5.00 MiB", "9.00 MiB")
    assert ours["memory"].text == theirs["memory"].text
    keys = list(ours)
    assert keys[keys.index("resident") - 1] == "state"
    page = render(found, tmp_path)
    written = {line["row"]: line for line in json.loads((page.parent / "table.json").read_text())}
    assert written[VARIANT]["resident"] == 5 << 20 and "resident growth" in (page.parent / "table.md").read_text()
    assert re.search(r'title="a side figure and none of the method&#39;s[^"]*keeps what it frees', page.read_text())
    assert "resident" not in as_table(found)
    on_gpu = [
        dataclasses.replace(record, memory=dataclasses.replace(record.memory, rss_growth_bytes=None))
        for record in found
    ]
    assert "resident" not in cells(on_gpu, VARIANT)


def test_entries_kept_are_told_of_what_is_read_and_of_all_tokens():
    """A paper's "50 %" is 80 % of what any step reads; where every row reads all, there is no such column."""
    from varbench.plan.compiler import compile_plan
    from varbench.plan.presets import preset
    from varbench.rows.grammar import resolve

    spec = preset("var-d30").spec
    plan = compile_plan(spec, resolve("hack@r50", spec).policies)
    assert "at last a head reads 340 of 424 entries, 80%; of all tokens 50%" in str(plan)
    record = make_record("hack@r50")
    record = dataclasses.replace(record, plan=plan_summary(plan, batch=64, dtype="bfloat16"))
    cell = cells([*full_records(), record], "hack@r50")["kept"]
    assert (cell.text, cell.note[:17]) == ("80%", "50% of all tokens")
    assert "kept" not in cells(full_records(), "full_var")
