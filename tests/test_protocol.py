"""A published protocol: its settings, its files by name and hash, and what a row says that departs from it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_factory import full_records, make_score
from scripted import a_run, options

from varbench import rows
from varbench.__main__ import main
from varbench.base.hashing import file_hash
from varbench.errors import UserError
from varbench.model.bundle import write_bundle
from varbench.plan import presets, protocols
from varbench.record import PublishedLine, Quality
from varbench.record.option_forms import as_arguments
from varbench.rows import FULL
from varbench.rows.manager import manager
from varbench.run import published_files
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.messages import Job
from varbench.run.tasks.resolving import resolved
from varbench.run.weight_files import weight_files
from varbench.show import columns, held_against
from varbench.show.entries import blocks_of

NAME = "imagenet256-50k"
NAMES = {
    "weights": "var_d30.pth",
    "vae": "vae_ch160v4096z32.pth",
    "reference": "VIRTUAL_imagenet256_labeled.npz",
    "inception": "weights-inception-2015-12-05-6726825d.pth",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files under all the published names, whose content is taken for the published one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "checkpoints"
    place.mkdir()
    for option, name in NAMES.items():
        (place / name).write_bytes(option.encode())
    known = protocols.protocol(NAME)

    def hashed(option: str, file: protocols.PublishedFile) -> protocols.PublishedFile:
        return file if file.sha256 is None else replace(file, sha256=file_hash(place / NAMES[option]), sure=True)

    here = replace(
        known,
        files={option: hashed(option, file) for option, file in known.files.items()},
        weights={**known.weights, "var-d30": hashed("weights", known.weights["var-d30"])},
    )
    monkeypatch.setitem(protocols._PROTOCOLS, NAME, here)
    return place


def under(folder: Path | None, **given: Any) -> Any:
    asked = {"protocol": NAME, "model": "var-d30", "checkpoints": folder and str(folder), **given}
    return options(**asked)


def test_a_folder_and_a_name_are_the_whole_protocol(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = under(folder)
    assert (found.images, found.cfg, found.top_k, found.top_p) == (50_000, 1.5, 900, 0.96)
    for option, name in NAMES.items():
        assert getattr(found, option) == str(folder / name)
    said = capsys.readouterr().err
    assert said.count("as published") == 3
    assert "VIRTUAL_imagenet256_labeled.npz is not known, so it is not checked" in said
    words = shlex.join(as_arguments(found, row="variant@d8"))
    assert "--protocol" not in words, "a row is repeated by what the protocol stands for"
    assert f"--weights {folder / 'var_d30.pth'}" in words and "--images 50000" in words


def test_torchs_own_cache_is_looked_into_too(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (folder / NAMES["inception"]).rename(cache / "pt_inception-2015-12-05-6726825d.pth")
    assert published_files.torch_cache() == cache
    assert under(folder).inception == str(cache / "pt_inception-2015-12-05-6726825d.pth")


def test_half_of_the_files_are_one_line_that_says_where_the_others_come_from(folder: Path) -> None:
    (folder / NAMES["vae"]).unlink()
    (folder / NAMES["reference"]).unlink()
    with pytest.raises(UserError) as refused:
        under(folder)
    said = str(refused.value)
    assert "lacks 2 of 4 files" in said and "\n" not in said
    for option in ("vae", "reference"):
        file = protocols.protocol(NAME).files[option]
        assert f"{file.name} ({file.source}; or --{option} PATH)" in said
    assert "there are var_d30.pth, weights-inception" in said


def test_another_hash_is_refused_unless_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / NAMES["weights"]).write_bytes(b"torn")
    with pytest.raises(UserError, match=r"var_d30\.pth has the sha256 .* is published with .*--other-files"):
        under(folder)
    capsys.readouterr()
    found = under(folder, other_files=True)
    assert found.weights == str(folder / "var_d30.pth")
    assert "as --other-files says" in capsys.readouterr().err


def test_other_inception_weights_are_refused_whatever_is_told(folder: Path) -> None:
    """A run would refuse them later: scores are named after that very file."""
    (folder / NAMES["inception"]).write_bytes(b"another network")
    with pytest.raises(UserError, match=r"fetch it again from .*--other-files does not take another, since distances"):
        under(folder, other_files=True)


def test_trained_weights_stand_for_the_published_checkpoint_and_its_tokenizer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, packed = presets.preset("var-d30").spec, tmp_path / "v.varbench"
    parts = {"vae": folder / NAMES["vae"], "main": folder / NAMES["weights"]}
    write_bundle(packed, recipe="variant@progressive", model=spec, files=parts, record={})
    hashes = {part: file_hash(path) for part, path in parts.items()}
    for path in parts.values():
        path.unlink()
    (folder / "var_d16.pth").write_bytes(b"sixteen")
    found = under(folder, weights=str(packed), other_files=True)
    assert (found.weights, found.vae) == (str(packed), None)
    assert (found.images, found.reference) == (50_000, str(folder / NAMES["reference"]))
    assert "trained weights of variant@progressive" in capsys.readouterr().err
    files = weight_files(found, {"refiner": presets.preset("var-d16").spec})
    assert files is not None and {part: file_hash(Path(files[part])) for part in hashes} == hashes
    assert files["refiner"] == str(folder / "var_d16.pth"), "what it lacks is still found"
    (folder / NAMES["reference"]).unlink()
    with pytest.raises(UserError, match="lacks 1 of 2 files: VIRTUAL_imagenet256_labeled"):
        under(folder, weights=str(packed))
    with pytest.raises(UserError, match="has its tokenizer inside; leave --vae out"):
        options(model="var-d30", weights=str(packed), vae=str(folder / "var_d16.pth"))


def test_a_hash_that_one_source_states_refuses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = protocols.protocol(NAME)
    unsure = replace(here.weights["var-d30"], sha256="0" * 64, sure=False)
    monkeypatch.setitem(protocols._PROTOCOLS, NAME, replace(here, weights={"var-d30": unsure}))
    assert under(folder).weights == str(folder / "var_d30.pth")
    assert "warning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": None}, "needs --model, one of var-d16, var-d20, var-d24, var-d30"),
        ({"model": "tiny"}, "knows no weights of tiny"),
        ({"weights": "random"}, "random weights have none of"),
        ({"protocol": None, "model": "tiny"}, "--checkpoints belongs to --protocol NAME"),
        ({"protocol": "imagenet256"}, "Did you mean 'imagenet256-50k'"),
        ({"checkpoints": "nowhere"}, "no such folder"),
    ],
)
def test_what_does_not_go_together_is_said(folder: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        under(folder, **given)


def test_a_second_model_is_found_by_its_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "var_d16.pth").write_bytes(b"sixteen")
    here = protocols.protocol(NAME)
    sixteen = replace(here.weights["var-d16"], sha256=file_hash(folder / "var_d16.pth"))
    monkeypatch.setitem(protocols._PROTOCOLS, NAME, replace(here, weights={**here.weights, "var-d16": sixteen}))
    spec = replace(presets.preset("var-d16").spec, name="whatever a method calls it")
    files = weight_files(under(folder), {"refiner": spec, "other": replace(spec, depth=7)})
    assert files is not None
    assert files["refiner"] == str(folder / "var_d16.pth")
    assert "other" not in files


def test_a_row_whose_second_model_lacks_says_where_it_is_published(folder: Path) -> None:
    asked = under(folder, plugins="code@n8,variant@d8")
    job = Job(task="resolving", options=asked, model=presets.preset("var-d30").spec)
    found = {row.name: row.failure for row in resolved(job, manager()).rows}
    failure = found["code@n8"]
    assert failure is not None and found["variant@d8"] is None
    file = protocols.protocol(NAME).weights["var-d16"]
    assert f"--companion refiner=FILE, published as var_d16.pth ({file.source})" in failure.reason
    assert protocols.published_weights(replace(presets.preset("var-d16").spec, depth=7)) is None


def test_what_departs_from_the_protocol_is_on_the_row_with_the_command_that_does_not(
    folder: Path, tmp_path: Path
) -> None:
    exact, less = under(folder), under(folder, images=2000, cfg=2.0)
    run = a_run(tmp_path, plugins="variant@d8")

    def warned(chosen: Any) -> list[Any]:
        known = {name: getattr(chosen, name) for name in ("protocol", "images", "cfg", "top_k", "top_p")}
        one = replace(run, options=replace(run.options, **known))
        record = fill(one, one.rows["variant@d8"], Findings(), floors={})
        return [notice for notice in record.warnings if NAME in notice.text]

    assert warned(exact) == []
    (notice,) = warned(less)
    assert "images 2000, there 50000, cfg 2.0, there 1.5" in notice.text
    assert "--images 50000" in notice.next_command and "--cfg 1.5" in notice.next_command


def test_protocols_are_listed_with_sources_and_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "protocols"]) == 0
    said = capsys.readouterr().out
    assert NAME in said and "hash not known" in said and "https://" in said
    assert main(["list", "protocols", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["protocols"]
    assert listed["weights"]["var-d30"]["name"] == "var_d30.pth"


README = PublishedLine(
    figures={"fid": 1.97}, grade="primary", source="README", settings={"images": 50_000, "cfg": 1.5, "top_k": 900}
)
PAPER = PublishedLine(figures={"fid": 1.92}, grade="secondary", source="final version")


def scored(*, fid: float, published: tuple[PublishedLine, ...], **protocol: Any) -> Any:
    """The full model's entry with this FID, under these options."""
    record = full_records(preset="var-d30", published=published)[0]
    options = replace(record.protocol, **{"top_k": 900, "images": 50_000, **protocol})
    score = replace(make_score("FID", fid, 0.02, n=options.images), weights_sha256="6726825d" + "0" * 56)
    return blocks_of([replace(record, protocol=options, quality=Quality(scores=(score,)))])[0]


def test_both_generations_of_figures_stand_beside_ours_and_one_is_compared() -> None:
    block = scored(fid=1.95, published=(README, PAPER))
    first, second = held_against.held(block.entries[0])
    assert first.compared and "FID 1.95 ± 0.02, agrees" in first.words
    assert not second.compared and second.words == "not compared: README says its settings, and this line does not"
    headings, rows = columns.table_of(block)
    cell = rows[0][[heading.key for heading in headings].index("published")]
    assert cell.text == "FID 1.97 [primary, compared]; FID 1.92 [secondary]"
    assert "agrees" in cell.note
    assert "+20%" in held_against.held(scored(fid=2.364, published=(README,)).entries[0])[0].words


def test_a_row_under_other_settings_is_compared_with_nothing_that_states_its_own() -> None:
    (line,) = held_against.held(scored(fid=1.95, published=(README,), cfg=2.0).entries[0])
    assert not line.compared and line.words == "not compared: cfg 1.5 there, here 2"
    (line,) = held_against.held(scored(fid=3.0, published=(PAPER,), images=10_000).entries[0])
    assert not line.compared and "50,000 images, and here are 10,000" in line.words
    (line,) = held_against.held(scored(fid=1.95, published=(PAPER,)).entries[0])
    assert line.compared, "where nobody states settings, the only line is compared"


def test_the_full_model_brings_both_generations_of_its_figures() -> None:
    row = rows.resolve(FULL, presets.preset("var-d30").spec)
    stated = [line for line in row.published if "fid" in line.figures and line.settings]
    assert [line.figures["fid"] for line in stated] == [1.97]
    assert stated[0].settings == protocols.protocol(NAME).settings
    assert 1.92 in [line.figures.get("fid") for line in row.published]
