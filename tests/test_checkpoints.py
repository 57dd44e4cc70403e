"""Checkpoint files: every form that users bring, and every way in which one can be wrong."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import golden_files as golden
import models
import pytest
import torch
from safetensors.torch import save_file

import varbench
from varbench.base.hashing import file_hash
from varbench.engine.loading import random_transformer
from varbench.errors import CheckpointError, UserError
from varbench.plan import presets

Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return golden.save_checkpoints(tmp_path, models.SPEC)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def tokens(files: Files, **kwargs: Any) -> torch.Tensor:
    return varbench.load_pipeline(**files, **kwargs).generate([1, 2], seed=0).tokens


def test_sizes_are_read_off_the_file(files: Files) -> None:
    pipe = varbench.load_pipeline(**files)
    assert pipe.model == dataclasses.replace(models.SPEC, name="var")
    assert len(pipe.weights["vae"]) == len(pipe.weights["main"]) == 64


def test_files_of_the_official_trainer(files: Files, tmp_path: Path) -> None:
    nested = tmp_path / "ckpt.pth"
    torch.save(
        {
            "epoch": 3,
            "iter": 0,
            "trainer": {"vae_local": load(files["vae"]), "var_wo_ddp": load(files["var"]), "var_opt": {"state": {}}},
            "args": {"depth": 6},
        },
        nested,
    )
    assert torch.equal(tokens({"vae": nested, "var": nested}), tokens(files))


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def compiled_layers(state: dict[str, Any]) -> dict[str, Any]:
    """As a state dict whose layers were compiled one by one has them."""
    return {re.sub(r"^(blocks\.\d+\.)", r"\1_orig_mod.", key): tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: prefixed("module.", state),
        lambda state: prefixed("_orig_mod.", state),
        lambda state: prefixed("module._orig_mod.", state),
        lambda state: prefixed("_orig_mod.module.", state),
        compiled_layers,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"model": {"state_dict": prefixed("module.", state)}},
        lambda state: {"trainer": {"var_wo_ddp": {"model": prefixed("_orig_mod.", state)}}},
    ],
)
def test_prefixes_and_nests_of_training_scripts(files: Files, tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(load(files["var"])), tmp_path / "wrapped.pth")
    assert torch.equal(tokens({**files, "var": tmp_path / "wrapped.pth"}), tokens(files))


def test_safetensors_are_known_by_their_content(files: Files, tmp_path: Path) -> None:
    whole = {key: tensor.contiguous() for key, tensor in load(files["var"]).items()}
    for name in ("var.safetensors", "named-wrongly.pth"):
        save_file(whole, tmp_path / name)
        assert torch.equal(tokens({**files, "var": tmp_path / name}), tokens(files))


def test_what_holds_no_state_dict_says_what_it_holds(files: Files, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: holds no state dict.*; it holds epoch, weights"):
        varbench.load_pipeline(vae=files["vae"], var=tmp_path / "other.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("part", "name"), [("var", "blocks.2.ffn.fc1.weight"), ("vae", "quantize.embedding.weight")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    files: Files, tmp_path: Path, part: str, name: str, value: float
) -> None:
    state = load(files[part])
    state[name].view(-1)[7] = value
    torch.save(state, tmp_path / "diverged.pth")
    with pytest.raises(CheckpointError, match=rf"diverged\.pth: 1 of \d+ tensors hold NaN .*\({name}\)"):
        varbench.load_pipeline(**{**files, part: tmp_path / "diverged.pth"})


def test_usage_counts_of_another_model_are_ignored(files: Files, tmp_path: Path) -> None:
    state = load(files["vae"])
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(3, 64)
    torch.save(state, tmp_path / "other.pth")
    assert torch.equal(tokens({**files, "vae": tmp_path / "other.pth"}), tokens(files))


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_a_pickle_that_could_run_code_is_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"word_embed.weight": torch.zeros(1), "payload": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused, since it holds more than tensors"):
        varbench.load_pipeline(vae=files["vae"], var=tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


WHAT_IT_IS = {
    "an empty file": b"",
    "a git-LFS pointer, not the file of 2,040,109,466 bytes": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2040109466\n"
    ),
    "a web page saved under this name": b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>",
    "neither a file of torch.save nor a .safetensors file": b"not weights at all",
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("said", WHAT_IT_IS)
def test_what_is_no_checkpoint_is_called_what_it_is(files: Files, tmp_path: Path, suffix: str, said: str) -> None:
    path = tmp_path / f"download.{suffix}"
    path.write_bytes(WHAT_IT_IS[said])
    with pytest.raises(CheckpointError, match=rf"download\.{suffix}: {said}"):
        varbench.load_pipeline(vae=files["vae"], var=path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
def test_truncated_files(files: Files, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"torn.{suffix}"
    if suffix == "pth":
        path.write_bytes(files["var"].read_bytes())
    elif suffix == "old.pth":
        torch.save(load(files["var"]), path, _use_new_zipfile_serialization=False)
    else:
        save_file({key: tensor.contiguous() for key, tensor in load(files["var"]).items()}, path)
    content = path.read_bytes()
    kept = int(len(content) * share)
    path.write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=rf"torn\.{suffix}: cut short or damaged: its {kept:,} bytes"):
        varbench.load_pipeline(vae=files["vae"], var=path)


def _without(state: dict[str, Any]) -> None:
    del state["blocks.2.ffn.fc1.bias"]


def _with(state: dict[str, Any]) -> None:
    state["blocks.2.surprise"] = torch.zeros(2)


def _misshapen(state: dict[str, Any]) -> None:
    state["blocks.2.ffn.fc1.bias"] = torch.zeros(7)


def _other_codes(state: dict[str, Any]) -> None:
    state["head.bias"] = torch.zeros(99)


def _bad_levels(state: dict[str, Any]) -> None:
    state["lvl_1L"] = torch.zeros_like(state["lvl_1L"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"1 missing \(blocks\.2\.ffn\.fc1\.bias\)"),
        (_with, r"1 surplus \(blocks\.2\.surprise\)"),
        (_misshapen, r"blocks\.2\.ffn\.fc1\.bias is \(7,\), not \(256,\)"),
        (_other_codes, r"head\.bias is \(99,\), not \(64,\)"),
        (_bad_levels, "lvl_1L gives scales of"),
    ],
)
def test_faults_are_named(files: Files, tmp_path: Path, change: Any, message: str) -> None:
    state = load(files["var"])
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=message):
        varbench.load_pipeline(vae=files["vae"], var=tmp_path / "wrong.pth")


def test_swapped_and_absent_files(files: Files, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it holds a transformer .*swapped"):
        varbench.load_pipeline(vae=files["var"], var=files["vae"])
    with pytest.raises(CheckpointError, match="no such file"):
        varbench.load_pipeline(vae=files["vae"], var=tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="give both"):
        varbench.load_pipeline(var=files["var"])
    with pytest.raises(CheckpointError, match=r"6 layers of width 64 .* var-d16 has 16"):
        varbench.load_pipeline("var-d16", **files)


def test_heads_of_plain_attention(tmp_path: Path) -> None:
    spec = models.ModelSpec(
        name="plain", sides=(1, 2, 4), depth=2, width=64, heads=2, l2_attention=False, tokenizer=models.TOKENIZER
    )
    files = golden.save_checkpoints(tmp_path, spec)
    assert varbench.load_pipeline(**files).model.heads == 1
    assert varbench.load_pipeline(**files, num_heads=2).model.heads == 2
    with pytest.raises(CheckpointError, match="64 cannot be split into 3 heads"):
        varbench.load_pipeline(**files, num_heads=3)


def test_a_second_model_that_is_not_loaded(files: Files) -> None:
    pipe = varbench.load_pipeline(**files)
    with pytest.raises(UserError, match="'refiner', which is not loaded"):
        pipe.generate([1], method="code@training_free/n3")


@pytest.mark.parametrize("random", [False, True])
def test_a_presets_second_model_is_found_by_its_sizes_when_a_method_names_it(random: bool) -> None:
    pipe = varbench.load_pipeline("tiny", random=random)
    assert list(pipe.backbones) == ["main"], "nobody has asked for another"
    plan, _ = pipe.compile("code@training_free/n4")
    assert plan.backbone("refiner") == pipe.backbones["refiner"].spec == pipe.model.narrower()
    shipped = presets.shipped_files("tiny", {"any": pipe.model.narrower()})["any"]
    assert pipe.weights["refiner"] == ("random, seed 0" if random else file_hash(shipped))


@pytest.mark.parametrize(("kwargs", "message"), [({"dtype": "int4"}, "dtype 'int4'"), ({"preset": "tinny"}, "tiny")])
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        varbench.load_pipeline(**kwargs)


def test_random_weights_are_the_seeds_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        {name: tensor.clone() for name, tensor in random_transformer(models.SPEC, seed).state_dict().items()}
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) and first[name].isfinite().all() for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)
