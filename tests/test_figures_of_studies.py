"""Pictures of studies, and of trainings of several lengths side by side."""

from __future__ import annotations

import dataclasses

from record_factory import full_records, make_record

from varbench.record import Record
from varbench.show import figures_budgets, figures_study, page
from varbench.show.charts import Figure
from varbench.show.entries import blocks_of


def trained(row: str, steps: int, quality: float, seed: int = 0) -> Record:
    record = make_record(row, quality=quality)
    assert record.training is not None
    return dataclasses.replace(
        record,
        protocol=dataclasses.replace(record.protocol, steps=steps, seed=seed),
        training=dataclasses.replace(record.training, steps=steps, seed=seed),
    )


def full_at(steps: int) -> list[Record]:
    return [
        dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, steps=steps))
        for record in full_records()
    ]


def drawn(figure: Figure) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """By cell and recipe, steps and score."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for cell in figure.cells:
        for value in cell.spec["data"]["values"]:
            lines = found.setdefault(cell.title, {}).setdefault(value["family"], [])
            lines.append((value["steps"], value["value"]))
    return {cell: {family: sorted(line) for family, line in lines.items()} for cell, lines in found.items()}


def test_trainings_of_several_lengths_are_lines_by_what_runs() -> None:
    records = [*full_at(250), *full_at(1000)]
    for seed in range(3):
        records += [
            trained("variant@progressive/d8", 250, 4.0 + seed, seed),
            trained("variant@progressive/d8", 1000, 2.0, seed),
        ]
    # The same plan under another name belongs to the same cell; what has one length only is no line.
    records += [trained("smaller@alone/d8", 250, 3.0), trained("smaller@alone/d8", 1000, 1.5)]
    records += [trained("variant@progressive/d2", 250, 9.0)]
    figures = figures_budgets.over_budgets(blocks_of(records))
    assert list(figures) == [0]
    assert drawn(figures[0]) == {
        "d8": {"variant@progressive": [(250, 5.0), (1000, 2.0)], "smaller@alone": [(250, 3.0), (1000, 1.5)]}
    }
    (wide,) = (value for value in figures[0].cells[0].spec["data"]["values"] if value["value"] == 5.0)
    assert wide["seeds"] == 3 and wide["high"] - wide["low"] > 2, "the band is over seeds"
    assert [name for name, _ in page.draw(records)[0].figures].count("budgets") == 1


def test_one_length_or_other_conditions_are_no_lines() -> None:
    once = [*full_at(250), trained("variant@progressive/d8", 250, 4.0)]
    other = [trained("variant@progressive/d8", 1000, 2.0)]
    other = [dataclasses.replace(one, protocol=dataclasses.replace(one.protocol, top_k=9)) for one in other]
    assert figures_budgets.over_budgets(blocks_of(once)) == {}
    assert figures_budgets.over_budgets(blocks_of([*once, *other])) == {}


def test_what_was_scored_on_another_machine_and_is_not_timed_stands_in_one_table() -> None:
    def on(machine: str, seed: int, *, timed: bool) -> Record:
        record = trained("variant@progressive/d8", 250, 4.0 + seed, seed)
        environment = dataclasses.replace(record.environment, machine=machine)
        return dataclasses.replace(record, environment=environment, timing=record.timing if timed else None)

    (block,) = blocks_of([on("one", 0, timed=False), on("other", 1, timed=False)])
    assert [len(entry.records) for entry in block.entries] == [2]
    assert len(blocks_of([on("one", 0, timed=True), on("other", 1, timed=True)])) == 2
    assert len(blocks_of([on("one", 0, timed=True), on("other", 1, timed=False)])) == 2, "times are the machine's"


def test_a_longer_training_may_have_been_scored_on_another_machine() -> None:
    there = [*full_at(1000), trained("variant@progressive/d8", 1000, 2.0)]
    there = [dataclasses.replace(x, environment=dataclasses.replace(x.environment, machine="another")) for x in there]
    blocks = blocks_of([*full_at(250), trained("variant@progressive/d8", 250, 4.0), *there])
    assert len(blocks) == 2
    assert drawn(figures_budgets.over_budgets(blocks)[0]) == {"d8": {"variant@progressive": [(250, 4.0), (1000, 2.0)]}}


def of_choices(*names: str) -> Figure:
    rows = [make_record(name, study="choices", quality=float(place + 1)) for place, name in enumerate(names)]
    rows = [dataclasses.replace(row, row=dataclasses.replace(row.row, params=_parameters(row.row.row))) for row in rows]
    (block,) = blocks_of([*full_records(), *rows])
    (figure,) = figures_study.studies(block)
    return figure


def _parameters(name: str) -> dict[str, bool | int | float | str]:
    _, _, said = name.partition(":")
    return {f"variant.{said.partition('=')[0]}": said.partition("=")[2]} if said else {}


def test_a_study_of_settings_at_several_points_has_a_cell_for_each_point() -> None:
    figure = of_choices("variant@d8", "variant@d2", "variant@d8:bridge=0", "variant@d2:bridge=0")
    assert {cell.title: [value["setting"] for value in cell.spec["data"]["values"]] for cell in figure.cells} == {
        "d8": ["unchanged", "bridge 0"], "d2": ["unchanged", "bridge 0"],
    }  # fmt: skip
    assert {layer["mark"]["type"] for layer in figure.cells[0].spec["layer"]} == {"rule", "point"}


def test_other_studies_are_bars() -> None:
    figure = of_choices("variant@d8:bridge=0", "variant@d8:bridge=1", "variant@d8:bridge=2")
    (cell,) = figure.cells
    assert [value["setting"] for value in cell.spec["data"]["values"]] == [
        "full model",
        "bridge 0",
        "bridge 1",
        "bridge 2",
    ]
    assert cell.spec["layer"][0]["mark"]["type"] == "bar"
