"""A published table beside ours: what is measured, what is foreseen, and every disagreement by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from conftest import CommandLine
from record_factory import full_records, make_record

from varbench import rows
from varbench.commands import report
from varbench.errors import UserError
from varbench.measure.kept_rates import keep_rates
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.hardware import KNOWN, hardware
from varbench.policies import Paper
from varbench.record import PublishedLine, Record
from varbench.record.sections import Section, Table, Text
from varbench.run.messages import ResolvedRow
from varbench.show import formatting, paper

D30 = presets.preset("var-d30").spec
TABLE = Paper(title="Their table", rows=("full_var", "variant@d8"), model="var-d30", batch=64, dtype="float16", hardware="L20")  # fmt: skip


def resolved(text: str, *lines: PublishedLine) -> ResolvedRow:
    plans = [compile_plan(D30, rows.resolve(text, D30).policies, accounting=one) for one in ("lossless", "upstream")]
    return ResolvedRow(name=text, plan=plans[0], other_plan=plans[1], published=lines)


def printed(**figures: float) -> PublishedLine:
    return PublishedLine(figures=figures, grade="primary", source="their paper")


def lines_of(*lines: PublishedLine, records: tuple[Record, ...] = ()) -> tuple[list[dict[str, str]], str]:
    """The table's lines for `variant@d8`, and the disagreements."""
    full = resolved("full_var")
    table = paper.PaperTable(paper=TABLE, rows=(resolved("variant@d8", *lines),), full=full, left_out=())
    found = paper.section(table, records)
    (shown,) = [part for part in found.parts if isinstance(part, Table)]
    last = found.parts[-1]
    assert isinstance(last, Text)
    return [dict(zip(shown.columns, line, strict=True)) for line in shown.rows], last.text


def measured(*, score: float = 2.13, images: int = 50_000, device: str = "NVIDIA L20", seconds: float = 0.4) -> tuple[Record, ...]:  # fmt: skip
    """Records of var-d30; the row takes `seconds` where the full model takes one."""
    row = make_record(
        "variant@d8", preset="var-d30", quality=score, score_name="FID", images=images, seconds=seconds, training=False
    )
    found = []
    for record in (*full_records(preset="var-d30", quality=1.95, score_name="FID", images=images), row):
        assert record.quality is not None
        scores = tuple(dataclasses.replace(one, weights_sha256="6726825d" + "0" * 56) for one in record.quality.scores)
        quality = dataclasses.replace(record.quality, scores=scores)
        environment = dataclasses.replace(record.environment, device=device)
        found.append(dataclasses.replace(record, quality=quality, environment=environment))
    return tuple(found)


def test_without_records_the_plan_stands_beside() -> None:
    """63.5 % of the cache and 2.73x less work, as tests/test_cli.py has them from `varbench plan`."""
    (line,), said = lines_of(printed(fid=2.12, speedup=2.6, kv_saving=0.65, latency_s=1.4))
    assert line["printed"] == "FID 2.12, 2.6x, 1.40 s, cache saving 65%"
    assert (line["measured here"], line[""]) == ("-", "agrees")
    assert "2.73x less work" in line["by the plan"] and "63.5%" in line["by the plan"]
    assert said == "Disagreements: none was found."


def test_what_disagrees_is_named_with_both_numbers() -> None:
    lines, said = lines_of(printed(speedup=3.5), printed(latency_s=0.2, kv_saving=0.64), printed(fid=2.12, speedup=2.7))
    assert [line[""] for line in lines] == ["disagrees: speedup", "disagrees: latency_s", "agrees"]
    assert "variant@d8: 3.5x is printed (their paper); 2.73x less work in the transformer by the plan." in said
    assert "0.20 s is printed (their paper); at least 739 ms by the plan" in said, "faster than the roofline"
    assert "printed are 3.5x (their paper) and 2.7x (their paper)" in said
    assert "FID" not in said


def test_scores_are_judged_under_their_name_and_from_enough_images() -> None:
    (line,), said = lines_of(printed(fid=2.12), records=measured())
    assert (line["measured here"], line[""]) == ("FID 2.13 ± 0.20", "agrees")
    (line,), said = lines_of(printed(fid=2.12), records=measured(score=2.4))
    assert line[""] == "disagrees: fid" and "FID 2.12 is printed (their paper); FID 2.40 ± 0.20 measured here" in said
    (line,), said = lines_of(printed(fid=2.12), records=measured(score=9.0, images=2000))
    assert (line["measured here"], line[""]) == ("FID-2000 9.00 ± 0.20", ""), "shown, and not held against theirs"


def test_times_are_judged_on_the_papers_card_alone() -> None:
    (line,), _ = lines_of(printed(latency_s=1.0), records=measured(device="NVIDIA H100 80GB HBM3"))
    assert "on NVIDIA H100 80GB HBM3 at batch 64" in line["measured here"] and line[""] == "agrees", "by the plan"
    (line,), said = lines_of(printed(latency_s=1.0), records=measured())
    assert line[""] == "disagrees: latency_s" and "NVIDIA L20 at batch 64 measured here" in said


def test_what_was_measured_of_the_papers_card_foresees_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "L20", dataclasses.replace(KNOWN["L20"], measured=True))
    (line,), said = lines_of(printed(latency_s=0.2))
    assert line["by the plan"] == "739 ms" and "by the plan" in said
    (line,), _ = lines_of(printed(latency_s=0.74))
    assert line[""] == "agrees"


def test_a_card_that_was_calibrated_is_the_papers_card_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_rates(dataclasses.replace(hardware("L20"), name="NVIDIA L20"))
    (line,), _ = lines_of(printed(latency_s=1.0), records=measured(device="NVIDIA L20"))
    assert line[""] == "disagrees: latency_s"


@pytest.mark.parametrize(("flops", "verdict"), [(100e12, "agrees"), (200e12, "disagrees: latency_s")])
def test_what_replaces_the_loop_takes_as_long_as_its_products_do(flops: float, verdict: str) -> None:
    row = ResolvedRow(name="other", stated_flops=flops, published=(printed(latency_s=1.0),))
    full = resolved("full_var")
    found = paper.section(paper.PaperTable(paper=TABLE, rows=(row,), full=full, left_out=()), [])
    (shown,) = [part for part in found.parts if isinstance(part, Table)]
    ((*_, planned, said, _),) = shown.rows
    assert planned == f"at least {formatting.seconds(flops / hardware('L20').rate('float16'))} by its work"
    assert said == verdict


def test_a_quick_look_or_another_model_is_not_beside_what_was_printed() -> None:
    quick = [dataclasses.replace(r, protocol=dataclasses.replace(r.protocol, quick=True)) for r in measured()]
    tiny = (*full_records(), make_record("variant@d8"))
    for records in (tuple(quick), tiny):
        (line,), _ = lines_of(printed(fid=2.12), records=records)
        assert line["measured here"] == "-"


def test_a_plugins_paper_is_a_table_on_the_terminal(varbench: CommandLine) -> None:
    done = varbench("report", "--paper", "variant")
    assert done.returncode == 0, done.stderr
    assert "no records, so no page" in done.stderr
    text = done.stdout
    assert text.startswith("The table of arXiv 2511.16546")
    for row in ("full_var", "smaller@d20", "code@n6", "variant@d2", "fixed_ratio@p10/full"):
        assert f"\n{row} " in text, row
    assert "variant@d2: 3.5x is printed (abstract of arXiv 2511.16546); 5.19x less" in " ".join(text.split())
    assert "full_var:accounting" not in text
    assert "12.7 s by its work" in text, "50 steps of DiT-XL/2, both branches, at batch 64"
    assert max(map(len, text.splitlines())) <= 170


def test_the_page_has_the_table_as_a_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    table = paper.PaperTable(paper=TABLE, rows=(resolved("variant@d8", printed(speedup=3.5)),), full=resolved("full_var"), left_out=("their_own@x",))  # fmt: skip
    found = paper.section(table, [])
    assert isinstance(found, Section) and "not installed: their_own@x" in paper.as_text(found)
    from varbench.record import write_record

    for record in full_records():
        write_record(record, tmp_path / "run")
    monkeypatch.setattr(paper, "asked", lambda plugin: table)
    parser = __import__("argparse").ArgumentParser()
    report.add_parser(parser.add_subparsers())
    arguments = ["report", "--records", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--paper", "variant"]
    assert report.run(parser.parse_args(arguments)) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1]).read_text()
    assert "Their table" in page and "disagrees: speedup" in page and "A panel of --paper variant" in page


def test_a_plugin_without_a_paper_says_so() -> None:
    with pytest.raises(UserError, match="code says nothing of a paper's table; give Settings.paper"):
        paper.asked("code")
