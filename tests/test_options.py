"""One class says every option: a field more is an option more wherever options are read, written, hashed or shown."""

from __future__ import annotations

import ast
import dataclasses
import json
import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest
from record_factory import make_record
from scripted import Script, ScriptedChild

from varbench import commands
from varbench.__main__ import main
from varbench.commands.train import _vae
from varbench.errors import UserError
from varbench.record import coding, decode, encode, from_text, load_records, record_path, schema, to_json
from varbench.record.option_forms import add_arguments, as_arguments, contents, deciding, paths_in, settings
from varbench.record.options import ByMachine, ByPreset, Options, asked, option, options_of
from varbench.run import children, messages
from varbench.run.defaults import resolve
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.messages import Job
from varbench.run.prepare import Run, prepare
from varbench.show.compare import compare
from varbench.show.entries import blocks_of
from varbench.train.training_options import TrainingOptions

OF_THEIR_OWN = {
    "env --calibrate",
    "new_plugin --kind",
    "tokens --images",
    *(f"{verb} --out" for verb in ("export", "new_plugin", "report", "sample", "tokens")),
}
"""Flags of commands that mean another thing than the option of that name."""
REPORTS = Path(__file__).parents[1] / "reports"

Extended: Any = dataclasses.make_dataclass(
    "Extended",
    [("window", int, option("tokens that are looked at", default=4, least=1, metavar="N"))],
    bases=(Options,),
    frozen=True,
    kw_only=True,
)


def resolved(*words: str, kind: Any = Options, config: Path | None = None) -> Any:
    """As `varbench run` does it."""
    parser = ArgumentParser()
    add_arguments(parser, kind=kind)
    (one,) = resolve(Namespace(**vars(parser.parse_args([*words])), config=config), kind=kind)
    return one


def test_no_command_declares_an_option_anew() -> None:
    """It would take what the option refuses. What a command's own words say of one is given to `add_arguments`."""
    flags = {known.flag for known in asked(TrainingOptions).values()}
    declared = {
        f"{path.stem} {word.value}"
        for path in Path(str(commands.__file__)).parent.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        for word in call.args
        if isinstance(word, ast.Constant) and word.value in flags
    }
    assert declared == OF_THEIR_OWN


def decides(options: Any) -> list[str]:
    return [*deciding(options, contents(options))]


def a_run(options: Any) -> Run:
    return prepare(options, name="test")


def forget_kinds() -> None:
    """What has been looked up of the classes that values are read as."""
    for looked_up in (coding._kinds_of, coding._keys_of, coding._read_as, coding._makers_of):
        looked_up.cache_clear()


def test_a_field_more_is_an_option_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        children, "start", lambda job, **more: ScriptedChild(job, Script())
    )  # others know no such option
    words = ("--plugins", "variant@d8", "--weights", "random", "--dtype", "float32")
    usual = resolved(*words, kind=Extended)
    options = resolved(*words, "--window", "9", kind=Extended)
    assert (usual.window, options.window) == (4, 9)

    file = tmp_path / "run.toml"
    file.write_text("[run]\nwindow = 7\n")
    assert resolved(*words, kind=Extended, config=file).window == 7
    file.write_text("window = 0\n")
    with pytest.raises(UserError, match=r"run\.toml: window is 0; give 1 or more"):
        resolved(*words, kind=Extended, config=file)

    run = a_run(options)
    monkeypatch.setattr(messages, "Options", Extended)
    forget_kinds()
    job = run.job(task="making")
    assert decode(Job, json.loads(json.dumps(encode(job, "job"))), "job").options == job.options
    assert job.options.window == 9

    changed, same = (a_run(other).rows["variant@d8"].inputs for other in (usual, options))
    assert run.rows["variant@d8"].inputs != changed
    assert run.rows["variant@d8"].inputs == same

    again = as_arguments(options, row="variant@d8")[2:]
    assert "--window 9" in shlex.join(again)
    assert decides(resolved(*again, kind=Extended)) == decides(options)

    record = fill(run, run.rows["variant@d8"], Findings(), floors={})
    monkeypatch.setattr(schema, "Options", Extended)
    forget_kinds()
    data = json.loads(json.dumps(to_json(record)))
    assert data["protocol"]["window"] == 9
    assert from_text(json.dumps(data).encode()).protocol == record.protocol
    del data["protocol"]["window"]  # written before there was such an option
    assert from_text(json.dumps(data).encode()).protocol.window == 4
    forget_kinds()

    other = dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, window=4))
    ran = dataclasses.replace(record.protocol, kernel="flash", row_order=("variant@d8",))
    paths = [record_path(record.row, protocol, tmp_path) for protocol in (options, ran, other.protocol)]
    assert paths[0] == paths[1] != paths[2], "known before the row has run, and by what was asked for"
    titles = [block.title for block in blocks_of([record, other])]
    assert len(titles) == 2
    assert sum("window 9" in title for title in titles) == 1
    assert not any("window 4" in title for title in titles)
    with pytest.raises(UserError, match="unlike protocols.*window 9 and 4"):
        compare([record], [other])


def test_every_option_has_a_default_or_says_how_it_is_found() -> None:
    for name, one in options_of(Options).items():
        assert one.doc
        assert one.default is not None or one.absent, name
        if one.holds in (int, float) and not one.found:
            assert one.metavar, name
    by_machine = {name for name, one in asked(Options).items() if isinstance(one.default, ByMachine)}
    assert by_machine == {"model", "device", "dtype"}  # what `defaults` looks up


def test_defaults_by_preset() -> None:
    found = ByPreset(64, tiny=32, quick_tiny=16)
    assert [found.of(model, quick=quick) for model in ("tiny", "fashion", "var-d30") for quick in (False, True)] == [
        32,
        16,
        32,
        16,
        64,
        64,
    ]
    assert str(found) == "64, for tiny and fashion 32"
    assert resolved("--weights", "random", "--quick").batch == 16
    large = resolved("--weights", "random", "--model", "var-d16", "--device", "cpu")
    assert (large.batch, large.top_k, large.top_p, large.count, large.budget) == (64, 900, 0.96, 6, 30.0)


def test_booleans_can_be_switched_off(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("quick = true\nfresh = false\n")
    assert resolved(config=file).quick
    assert not resolved("--no-quick", config=file).quick
    assert not resolved(config=file).fresh
    assert resolved("--fresh", config=file).fresh


def test_paths_decide_by_what_they_hold(tmp_path: Path) -> None:
    def hashed(folder: str, content: bytes) -> list[str]:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "a.png").write_bytes(content)
        return decides(resolved("--reference", str(place), "--companion", f"refiner={place / 'a.png'}"))

    one = hashed("here", b"1")
    assert hashed("there", b"1") == one
    assert hashed("here", b"2") != one


def test_every_option_that_names_a_path_is_looked_at_ahead_of_a_run_and_its_word_is_none() -> None:
    options = resolved("--weights", "random")
    assert paths_in(options) == {}
    paths = {name: ("a=b",) if one.many else "b" for name, one in asked(Options).items() if one.path}
    assert {"weights", "companion", "features", "judge", "data"} <= paths.keys()
    assert [paths_in(dataclasses.replace(options, **{name: path})) for name, path in paths.items()] == [
        {name: path} for name, path in paths.items()
    ]


def test_what_only_waits_or_says_where_decides_nothing() -> None:
    options = resolved("--weights", "random")
    changed = dataclasses.replace(options, timeout=1.0, memory_limit=3.0, out="elsewhere", fresh=True, plugins="code")
    assert decides(changed) == decides(options)
    assert settings(changed) == settings(options)
    assert decides(dataclasses.replace(options, seed=1)) != decides(options)


def test_records_of_the_first_schema_are_read() -> None:
    loaded = load_records([REPORTS])
    assert loaded.problems == ()
    assert {record.protocol.model for record in loaded.records} == {"tiny", "var-d30", "fashion"}
    of_the_first_schema = load_records([Path(__file__).parent / "data" / "first_schema"])
    assert of_the_first_schema.problems == ()
    assert {record.protocol.count for record in of_the_first_schema.records} == {3}
    data = to_json(make_record(preset="var-d16"))
    for name in ("plugins", "model", "device", "count", "budget"):
        del data["protocol"][name]
    data["protocol"]["recipe_steps"] = data["protocol"].pop("steps")
    old = {**data, "schema": 1, "protocol": {**data["protocol"], "recipe_steps": 500}}
    found = from_text(json.dumps(old).encode()).protocol
    assert (found.model, found.device, found.steps, found.count, found.budget) == ("var-d16", "cpu", 500, 6, 3.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--memory-limit", "0"], "--memory-limit is 0; give more than 0"),
        (["sample", "--device", "gpu"], "--device is 'gpu'; give cpu, cuda or cuda:N"),
        (["train", "variant", "--steps", "0"], "--steps is 0; give 1 or more"),
        (["train", "base", "--dtype", "float16"], "give float32 or bfloat16"),
        (["train", "base", "--weights", "random"], "give a checkpoint to start from"),
        (["plan", "variant@d8", "--batch", "0"], "--batch is 0; give 1 or more"),
    ],
)
def test_every_verb_checks_what_it_shares(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_tokenizer_that_is_trained_on_is_the_shipped_one() -> None:
    assert _vae(Namespace(vae=None, model="tiny")).is_file()
    with pytest.raises(UserError, match="var-d16 ships no tokenizer"):
        _vae(Namespace(vae=None, model="var-d16"))
