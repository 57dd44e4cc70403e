"""Plugins own their story: figures that others printed, studies, claims. The page tells a stranger's as it tells ours."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import sys
import zlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from conftest import CommandLine
from record_factory import full_records, make_record

import varbench_plugins.variant
from varbench import hookspecs, rows
from varbench import record as r
from varbench.errors import UserError
from varbench.plan import presets
from varbench.record import sections
from varbench.rows.manager import PluginManager
from varbench.show.outputs import render

TINY, D30 = presets.preset("tiny").spec, presets.preset("var-d30").spec
STUDY = "scale_depth_asymmetry"
NAME = "variety"
"""What `variant` is called where it is installed anew."""


def printed(text: str) -> list[tuple[float | None, str]]:
    row = rows.resolve(text, D30)
    return [(line.figures.get("fid"), line.grade) for line in row.published]


def test_figures_stand_beside_the_very_setting_that_they_were_printed_for() -> None:
    assert printed("variant@d8") == [(2.12, "primary"), (2.15, "secondary")]
    assert printed("variant@d8:bridge=7") == printed("variant@d8+scale_window@w1") == []
    assert printed("variant@untrained/d16:zone=7-10") == [(5.42, "secondary")]
    assert printed("code@n8") == [(1.98, "primary")]
    assert printed("code@training_free/n8") == [(2.10, "primary")], "not what was printed of the trained pair"
    assert printed("fixed_ratio@p01/full") == [(1.96, "secondary")]
    assert printed("fixed_ratio@p01/d8") == [(2.68, "secondary")]
    assert {1.97, 1.92} <= {fid for fid, _ in printed("full_var")}, "both generations of the model's own figures"
    assert printed("dit@s50") == [(2.26, "primary")]
    assert printed("dit@s250") == printed("dit@s50:size=B") == []
    assert rows.resolve("variant@d8", TINY).published == ()


def test_figures_of_no_setting_are_refused_naming_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "astray.py").write_text(
        "from varbench.policies import Published, Settings\n"
        "def varbench_settings(model):\n"
        "    line = Published(setting='@half', model='tiny', figures={}, grade='primary', source='p')\n"
        "    return Settings(points=('whole',), published=(line,))\n"
    )
    with pytest.raises(UserError, match=r"plugin 'astray': .*'@half' are of no row: astray has no setting 'half'"):
        rows.resolve("astray", TINY, manager=installed(tmp_path, monkeypatch, "astray", "astray"))


def installed(site: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, less: str = "") -> PluginManager:
    """What is installed here less one, and a module of the folder under a name, in a distribution of its own."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[varbench]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(site))
    for loaded in [other for other in sys.modules if other.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    return PluginManager(point for point in entry_points(group=hookspecs.PROJECT) if point.name != less)


def measured(row: rows.Row, *, like: str, quality: float, study: str | None = None) -> r.Record:
    """A record with what a run takes from the row; what is measured is that of the row `like`."""
    made = make_record(like, quality=quality, preset=row.model.name, study=study, training=study is None)
    plugins = tuple(dataclasses.replace(made.row.plugins[0], name=info.name) for info in row.plugins)
    training = made.training and dataclasses.replace(
        made.training, recipe=f"{row.recipe_plugin}@{row.recipe}", key=f"{row.recipe_plugin}-{row.recipe}"
    )
    identity = dataclasses.replace(made.row, row=row.name, plugins=plugins, params=dict(row.parameters))
    lines = tuple(
        r.PublishedLine(figures=dict(f.figures), grade=f.grade, source=f.source, conditions=f.conditions)
        for f in row.published
    )
    words = row.study and r.StudyWords(title=row.study.title, caption=row.study.caption, place=row.place)
    return dataclasses.replace(
        made, row=identity, training=training, published=lines, study=words, command=f"varbench run --plugins {row.name}"
    )  # fmt: skip


def story(name: str, manager: PluginManager, folder: Path) -> tuple[str, Sequence[str]]:
    """The page of a method of `variant`'s kind under a name: its text with what the script shows, and its figures."""
    found = full_records(quality=4.0, preset="var-d30")
    for point, quality in (("full", 4.1), ("d8", 4.6), ("d2", 6.0)):
        row = rows.resolve(f"{name}@{point}", D30, manager=manager)
        found.append(measured(row, like=f"variant@{point}", quality=quality))
        found.append(make_record(f"fixed_ratio@p05/{point}", quality=quality + 1, preset="var-d30"))
    for row in rows.of_study(STUDY, D30, manager=manager).rows:
        if row.plugins[0].name == name:
            like = row.name.replace(name, "variant")
            found.append(measured(row, like=like, quality=9.0 - row.place, study=STUDY))
    page = render(found, folder, panels=_panels(found, _only(manager, name)))
    html = page.read_text()
    (packed,) = re.findall(r'id="payload">([^<]+)<', html)
    shown = zlib.decompress(base64.b64decode(packed)).decode()
    return html.replace(packed, json.dumps(json.loads(shown))), sorted(path.name for path in page.parent.rglob("*.svg"))


def _panels(records: Sequence[r.Record], manager: PluginManager) -> list[sections.Panel]:
    return [
        sections.Panel(source=f"{info.name} ({info.distribution} {info.version})", section=section)
        for info, given in manager.each("varbench_report_sections", records=records)
        for section in sections.given(given)
    ]


def _only(manager: PluginManager, name: str) -> PluginManager:
    """The other plugins of the environment would add the same panels to both pages."""
    return PluginManager([point for point in entry_points(group=hookspecs.PROJECT) if point.name == name])


def test_a_method_under_another_name_gets_the_same_page_but_for_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    shutil.copytree(Path(str(varbench_plugins.variant.__file__)).parent, site / "moved")
    ours, figures = story("variant", PluginManager(entry_points(group=hookspecs.PROJECT)), tmp_path / "ours")
    theirs, same = story(NAME, installed(site, monkeypatch, NAME, "moved", less="variant"), tmp_path / "theirs")
    assert "Which of VARiant" in ours and "Where depth matters" in ours and "FID 2.12 [primary]" in ours
    assert {"recipes.svg", "training.svg", "losses.svg", f"study-{STUDY.replace('_', '-')}.svg"} <= set(figures)
    assert f"{NAME}@d8" in theirs and "variant@" not in theirs
    version = varbench_version()
    assert theirs.replace(f"{NAME} ({NAME} 1.0)", f"variant (varbench {version})").replace(NAME, "variant") == ours
    assert same == figures


def varbench_version() -> str:
    (point,) = (point for point in entry_points(group=hookspecs.PROJECT) if point.name == "variant")
    assert point.dist is not None
    return point.dist.version


def test_a_strangers_study_and_printed_figures_are_on_the_page_like_ours(
    strangers: Path, varbench: CommandLine, tmp_path: Path
) -> None:
    """Records of a real run, whose children are stopped at once; what they would have measured is put in."""
    asked = ("--plugins", "every_other@plain", "--study", "where_to_begin")
    done = varbench(
        "run", *asked, "--weights", "random", "--quick", "--timeout", "0.1", "--out", "r", path=strangers,
        VARBENCH_DISABLE="not_importable,misspelt,wrong_parameters,leaves,raises,twin",
    )  # fmt: skip
    found = []
    for record in r.load_records([tmp_path / "r"]).records:
        like = make_record(record.row.row, quality=5.0 + record.row.params.get("every_other.first", 0), training=False)
        if record.row.denominator is None:
            found.append(dataclasses.replace(like, row=record.row, published=record.published, study=record.study))
    assert len(found) == 3, done.stderr
    html = render([*full_records(quality=4.0), *found], tmp_path / "page").read_text()
    assert "FID 4.50, likes 12 [primary]" in html and "our paper, a toaster" in html
    assert "another model&#39;s" not in html
    assert '<figure id="study-where-to-begin"' in html
    assert "<h3>Where to begin</h3><p>Scales that run whole. Published: first 2 FID 9.50 (secondary).</p>" in html
    (svg,) = (tmp_path / "page").rglob("study-where-to-begin.svg")
    drawn = svg.read_text()
    assert drawn.index(">full model<") < drawn.index(">first 10<") < drawn.index(">first 2<"), "the study's own order"
