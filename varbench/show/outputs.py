"""A report as a folder: the page, the same table in other formats, the figures as files, and the records themselves."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from varbench.base.hashing import digest
from varbench.base.whole_files import write_whole
from varbench.errors import UserError
from varbench.record import Encoded, Record, record_path, sections
from varbench.record.frames import lines_of, write_csv, write_parquet
from varbench.show import charts, columns, figures_speed, formatting, header_footer, page, samples, speedups, stills
from varbench.show.answer import answer, by_loss
from varbench.show.drawn_rows import label
from varbench.show.entries import Entry
from varbench.show.plugin_sections import PluginPanels

ABOUT = "report.json"
FORESEEN = ("row", "batch", "predicted, ms", "measured, ms", "measured / predicted")


def render(
    records: Sequence[Record],
    out_dir: Path,
    *,
    problems: Sequence[str] = (),
    panels: Sequence[sections.Panel] = (),
    changes: page.Changes | None = None,
    encoded: Encoded | None = None,
    plugins: Callable[[], PluginPanels] | None = None,
) -> Path:
    """Writes `out_dir`/<run>/ and the index beside it, and returns the new page. Another report is never touched:
    one of other records under that name stays, and this one gets a number; one of the same records is made anew.
    `encoded` are the records, where somebody has encoded them; `plugins` is asked for what they add once all else is there."""
    if not records and not problems:
        raise UserError("no records: nothing to report; run `varbench run` first, or name folders with --records")
    out_dir.mkdir(parents=True, exist_ok=True)
    encoded = Encoded.of(records) if encoded is None else encoded
    fingerprint = _fingerprint(encoded.texts, changes)
    folder = _folder_for(out_dir, _run_name(records), fingerprint)
    building = Path(tempfile.mkdtemp(dir=out_dir, prefix=".building-"))
    try:
        shown = page.Shown(
            records=records, encoded=encoded.data, problems=problems, panels=panels, changes=changes
        )  # fmt: skip
        with stills.DrawnBeside() as beside:
            _write_all(building, shown, fingerprint, encoded.texts, plugins, beside)
        os.chmod(building, 0o755)
        if folder.exists():
            _swap(building, folder)
        else:
            building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        speedups.forget()
    write_index(out_dir)
    return folder / "index.html"


def write_index(out_dir: Path) -> Path:
    """The list of all reports in a folder, the newest first."""
    reports = []
    for about in sorted(out_dir.glob(f"[!.]*/{ABOUT}")):
        try:
            found = json.loads(about.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and "fingerprint" in found:
            reports.append({**found, "folder": about.parent.name})
    reports.sort(key=lambda report: (report["measured"], report["folder"]), reverse=True)
    path = out_dir / "index.html"
    write_whole(path, page.index_page(reports).encode())
    return path


def _write_all(
    folder: Path,
    shown: page.Shown,
    fingerprint: str,
    texts: Sequence[bytes],
    plugins: Callable[[], PluginPanels] | None,
    beside: stills.DrawnBeside,
) -> None:
    records, drawn = shown.records, page.draw(shown.records)
    pictured, pictures = page.ask_for_stills(drawn, beside), _pictures(drawn, beside)
    files = _write_tables(folder, drawn, shown.encoded) + _write_foreseen(folder, drawn)
    for record, text in zip(records, texts, strict=True):
        path = record_path(record.row, record.protocol, folder / "records" / _safe_name(record.run))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    if plugins is not None:
        given = plugins()
        shown = dataclasses.replace(shown, panels=(*shown.panels, *given.panels), silent=given.silent)
    files += [f"figures/{name}" for name in pictures]
    html_text = page.page(shown, drawn, beside, pictured=pictured, files=[*files, "records/"])
    (folder / "index.html").write_text(html_text, encoding="utf-8")
    (folder / "figures").mkdir()
    for name, picture in pictures.items():
        (folder / "figures" / name).write_bytes(picture())
    entries = [entry for part in drawn for entry in part.block.entries]
    about: dict[str, Any] = {
        "fingerprint": fingerprint,
        "answer": answer(drawn[0].block if drawn else None),
        "by_loss": by_loss(drawn[0].block if drawn else None),
        "models": sorted({record.model.preset for record in records}),
        "devices": sorted({record.environment.device for record in records}),
        "rows": len(entries),
        "valid": sum(entry.believable for entry in entries),
        "measured": max((record.started for record in records), default=""),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")


def _write_tables(folder: Path, drawn: Sequence[page.Drawn], encoded: Sequence[dict[str, Any]]) -> list[str]:
    """`table.*` hold what the page's table shows, `records.*` the keys of every record, save what `record.frames` leaves out."""
    from tabulate import tabulate

    markdown, latex, lines = [], [], []
    for part in drawn:
        block = part.block
        headings = [column.heading for column in part.headings]
        rows, marked = [], []
        for entry, cells in zip(block.entries, part.rows, strict=True):
            lines.append(_line(part, entry.name, cells))
            shown = [
                (_plain(column, cell, entry), column, cell) for column, cell in zip(part.headings, cells, strict=True)
            ]
            rows.append([text for text, _, _ in shown])
            marked.append([_text(text).replace("|", "\\|") + _mark(column, cell) for text, column, cell in shown])
        table = tabulate(
            marked,
            headers=[_text(heading) for heading in headings],
            tablefmt="github",
            disable_numparse=True,
        )
        said = "\n\n".join(filter(None, (f"## {_text(block.title)}", _text(answer(block)), _text(by_loss(block)))))
        markdown.append(f"{said}\n\n{table}\n\n{formatting.what_marks_mean()}\n")
        latex.append(
            f"% {block.title}\n"
            + tabulate(rows, headers=headings, tablefmt="latex_booktabs", disable_numparse=True)
            + "\n"
        )
    (folder / "table.md").write_text("\n".join(markdown), encoding="utf-8")
    (folder / "table.tex").write_text("\n".join(latex).replace("±", "$\\pm$").replace("–", "--"), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")
    flat = lines_of(encoded)
    write_csv(flat, folder / "records.csv")
    write_parquet(flat, folder / "records.parquet")
    return ["table.md", "table.tex", "table.json", "records.csv", "records.parquet"]


def _write_foreseen(folder: Path, drawn: Sequence[page.Drawn]) -> list[str]:
    """Measured times against predicted ones, where any are: a row that is not believable has no time to be held against."""
    from tabulate import tabulate

    parts = []
    for block in (part.block for part in drawn):
        by_device: dict[str, list[tuple[str, ...]]] = {}
        for row in figures_speed.foreseen(block):
            if row.entry.believable:
                name = _text(label(row.entry)).replace("|", "\\|")
                figures = (formatting.number(row.predicted), formatting.with_interval(row.measured))
                line = (name, str(row.plan.batch), *figures, f"{row.quotient:.2f}")
                by_device.setdefault(row.device, []).append(line)
        for device, lines in by_device.items():
            table = tabulate(lines, FORESEEN, tablefmt="github", disable_numparse=True)
            about = f"The transformer's time for a batch, measured, and predicted by the plan for {device}."
            parts.append(f"## {_text(block.title)}\n\n{_text(about)}\n\n{table}\n")
    if not parts:
        return []
    (folder / "predicted.md").write_text("\n".join(parts), encoding="utf-8")
    return ["predicted.md"]


def _text(text: str) -> str:
    """Markdown lets HTML through; nothing from a record may be any."""
    return html.escape(text, quote=False)


def _plain(column: columns.Column, cell: columns.Cell, entry: Entry) -> str:
    """The cell as text with its interval, as on a terminal: there is no hover; an invalid row says why."""
    if column.key == "validity" and entry.trouble:
        return entry.trouble
    return (cell.terminal if cell.interval else None) or cell.text or "–"


def _mark(column: columns.Column, cell: columns.Cell) -> str:
    """Markdown's readers see how a judged figure stands to the full model's; LaTeX has no such letters by itself."""
    mark = formatting.MARKS.get(cell.tone) if column.judged else None
    return f" {mark}" if mark else ""


def _line(part: page.Drawn, name: str, cells: Sequence[columns.Cell]) -> dict[str, Any]:
    """One row of the table: figures as numbers, the 95 % intervals of those that have one, the reasons of those missing."""
    found: dict[str, Any] = {"row": name, "conditions": part.block.conditions}
    missing, intervals = {}, {}
    for column, cell in zip(part.headings, cells, strict=True):
        if column.key == "row":
            continue
        found[column.key] = cell.sort if column.numeric else cell.text
        if cell.text is None:
            missing[column.key] = cell.note
        if cell.interval is not None:
            intervals[column.key] = [cell.interval.low, cell.interval.high]
    return {**found, "intervals": intervals, "missing": missing}


def _pictures(drawn: Sequence[page.Drawn], beside: stills.DrawnBeside) -> dict[str, Callable[[], bytes]]:
    """The files of figures by name, and what waits for each."""
    found: dict[str, Callable[[], bytes]] = {}
    for number, part in enumerate(drawn):
        for name, figure in part.figures:
            svg = beside.ask(charts.static_spec(figure), alt=f"{figure.title}. {figure.caption}", name=name)
            found[f"{name}.svg"] = functools.partial(_bytes_of, svg)
        if part.grids:
            name = "samples.png" if number == 0 else f"{number + 1}-samples.png"
            found[name] = functools.partial(samples.sheet, list(part.grids))
    return found


def _bytes_of(svg: Callable[[], str]) -> bytes:
    return svg().encode()


def _fingerprint(texts: Sequence[bytes], changes: page.Changes | None) -> str:
    older = json.dumps(dataclasses.asdict(changes)) if changes is not None else ""
    return digest([*sorted(texts), older])


def _run_name(records: Sequence[Record]) -> str:
    runs = header_footer.runs(records)
    if not runs:
        return "no-records"
    return _safe_name(runs[-1] if len(runs) == 1 else f"{runs[-1]}-and-{len(runs) - 1}-more")


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "run"


def _folder_for(out_dir: Path, name: str, fingerprint: str) -> Path:
    """The folder of that name if it is free or holds a report of these very records, else the next number."""
    for number in range(1, 10_000):
        folder = out_dir / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
        try:
            if json.loads((folder / ABOUT).read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
                return folder
        except (OSError, ValueError, AttributeError):
            continue
    raise UserError(f"{out_dir} holds 9,999 reports named {name}: choose another --out")


def _swap(new: Path, old: Path) -> None:
    """Puts a finished folder in the place of an older one of the same records."""
    aside = old.with_name(f".old-{old.name}-{os.getpid()}")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)
