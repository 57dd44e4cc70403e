"""A round as on a machine with a GPU, on a CPU with small sizes: every part runs, or the README says why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shlex import split
from types import ModuleType
from typing import Any

import pytest

from varbench.record import Status, load_records

OFFICIAL = """
import torch
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.plan.presets import preset

class Official(Transformer):
    def autoregressive_infer_cfg(self, B, label_B, g_seed, cfg, top_k, top_p):
        assert len(label_B) == B and torch.is_autocast_enabled("cpu")
        return torch.zeros(B, 3, 32, 32)

def build_vae_var(*, device, depth, V, **sizes):
    assert (depth, V) == (16, 512)
    return Tokenizer.for_model(preset("tiny").spec), Official(preset("tiny").spec)
"""
"""What a checkout's `models` gives, of our own modules, which have the official names."""
SMALL = split("--device cpu --models tiny --batch 2 --plugins variant@d2 --steps 6 --images 20 --minutes 20")


@pytest.fixture
def gpu_round(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import gpu_round

    return gpu_round


@pytest.fixture
def anywhere(gpu_round: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the process that looks at the machine."""
    facts = {"device": "cpu", "GPU": "none", "cpu": "some", "torch": "2", "python": "3"}
    monkeypatch.setattr(gpu_round, "_facts", lambda: facts)


def test_only_the_parts_that_are_asked_for(
    gpu_round: ModuleType, anywhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_round, "carry_out", lambda *_: {"status": "done", "seconds": 1.0, "said": ""})
    assert gpu_round.main([*SMALL, "--parts", "engine,memory", "--out", str(tmp_path)]) == 0
    assert set(json.loads((tmp_path / "round.json").read_text())) == {"engine", "memory", "page"}


@pytest.mark.slow
def test_a_round(gpu_round: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part fails and one runs out of time; the same command again does these two, and no other."""
    checkout, out = tmp_path / "official" / "models" / "__init__.py", tmp_path / "round"
    checkout.parent.mkdir(parents=True)
    checkout.write_text("raise RuntimeError('a checkout of something else')")
    monkeypatch.setitem(gpu_round.MOST, "memory", 1e-6)
    asked = [*SMALL, "--official", str(tmp_path / "official"), "--out", str(out)]
    assert gpu_round.main(asked) == 1
    first = json.loads((out / "round.json").read_text())
    assert {name: part["status"] for name, part in first.items()} == {
        "tests": "done", "engine": "done", "official": "failed", "methods tiny": "done", "memory": "out of time",
        "trained": "done", "page": "done",
    }  # fmt: skip
    text = (out / "README.md").read_text()
    assert "| official     | failed      |" in text and "a checkout of something else" in text
    assert "| memory       | out of time |" in text
    found = {(record.run, record.row.row): record for record in load_records([out / "records"]).records}
    assert {name for name in found if name[0] == "tiny"} == {
        ("tiny", row) for row in ("full_var", "full_var:accounting=upstream", "variant@d2")
    }
    assert all(record.status is Status.COMPLETE for record in found.values())
    trained = found["trained-cpu", "variant@d8"].training
    assert trained is not None and trained.origin == "cache" and trained.steps == 6
    assert "FD-shapes" in text and "speedup, batch 2" in text and "speedup, batch 1" in text
    (page,) = out.glob("index.html")
    assert "variant" in page.read_text()

    checkout.write_text(OFFICIAL)
    monkeypatch.setitem(gpu_round.MOST, "memory", 5)
    assert gpu_round.main(asked) == 0
    second = json.loads((out / "round.json").read_text())
    assert {part["status"] for part in second.values()} == {"done"}
    assert {name for name in first if first[name] != second[name]} == {"official", "memory", "page"}
    again = {(record.run, record.row.row) for record in load_records([out / "records"]).records} - found.keys()
    assert again == {("tiny-memory", row) for row in ("full_var", "full_var:accounting=upstream", "variant@d2")}
    assert "official, ms" in (out / "README.md").read_text()


@pytest.mark.usefixtures("anywhere")
def test_every_model_is_timed_beside_the_official_code(gpu_round: ModuleType, tmp_path: Path) -> None:
    asked = [*split("--models tiny,var-d16 --minutes 0 --official"), str(tmp_path / "official"), "--out", str(tmp_path)]
    assert gpu_round.main(asked) == 1
    logs = [f"| {name} " for name in ("official", "official var-d16")]
    assert all(mark in (tmp_path / "README.md").read_text() for mark in logs)
    (tmp_path / "logs" / "official-var-d16.txt").write_text("official, ms")
    assert gpu_round.main(asked) == 1
    assert "## Beside the official code: var-d16\n\n```text\nofficial, ms" in (tmp_path / "README.md").read_text()


@pytest.mark.usefixtures("anywhere")
def test_what_is_not_reached_is_named(gpu_round: ModuleType, tmp_path: Path) -> None:
    """Beside a README that somebody has written, which stays."""
    (tmp_path / "README.md").write_text("what was seen before")
    assert gpu_round.main([*split("--models tiny,var-d16 --minutes 0 --out"), str(tmp_path)]) == 1
    lines = (tmp_path / "round.md").read_text().splitlines()
    missed = [line.split("|")[1].strip() for line in lines if "| not reached |" in line]
    assert missed == ["tests", "engine", "methods tiny", "memory", "trained", "methods var-d16"]
    assert (tmp_path / "README.md").read_text() == "what was seen before"


@pytest.mark.usefixtures("anywhere")
def test_what_was_done_otherwise_is_done_again(
    gpu_round: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def carry_out(commands: Mapping[str, list[str]], limit: float, logs: Path) -> dict[str, Any]:
        ran.extend(commands)
        return {"status": "done", "seconds": 1.0, "said": ""}

    monkeypatch.setattr(gpu_round, "carry_out", carry_out)

    def ran_with(options: str) -> list[str]:
        ran.clear()
        assert gpu_round.main([*split(f"--models tiny {options} --out"), str(tmp_path)]) == 0
        return ran

    assert ran_with("")[:3] == ["tests", "engine", "tiny"]
    assert ran_with("--minutes 9") == ["page"]
    assert ran_with("--batch 4") == ["engine", "tiny", "memory", "page"]
    monkeypatch.setattr(gpu_round, "_commit", lambda: "another")
    assert ran_with("--batch 4 --minutes 0") == ["page"]
    assert "| tests        | done       | 1" in (tmp_path / "README.md").read_text()
    assert "tests" in ran_with("--batch 4")


def test_every_method_is_asked_for(gpu_round: ModuleType) -> None:
    chosen = gpu_round.every_method("var-d30", outsiders=True)
    assert {name.partition("@")[0] for name in chosen} == set(gpu_round.manager().names())
    assert chosen[:2] == ["variant@full", "variant@d16"]
    own = set(chosen) - set(gpu_round.every_method("var-d30", outsiders=False))
    assert {name.partition("@")[0] for name in own} == {"dit", "distilled", "llamagen"}


@pytest.mark.parametrize(
    ("card", "folder"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA L20", "l20"), ("NVIDIA A100-SXM4-80GB", "a100"), ("cpu", "cpu")],
)
def test_folders_are_called_after_cards(gpu_round: ModuleType, card: str, folder: str) -> None:
    assert gpu_round._short(card) == folder
