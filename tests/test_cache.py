"""`varbench cache`: what is kept by kind, and only what was asked for is removed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from conftest import CommandLine

from varbench.base.places import KINDS, cache_folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cache with an old and a new training, and tokens."""
    folder = tmp_path / "home" / "varbench"
    for name, size in (
        ("weights/old/main.safetensors", 3000),
        ("weights/new/main.safetensors", 100),
        ("tokens/a.npy", 50),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    long_ago = time.time() - 40 * 24 * 3600
    for path in (folder / "weights/old/main.safetensors", folder / "weights/old"):
        os.utime(path, (long_ago, long_ago))
    return folder


def told(varbench: CommandLine, home: Path, *arguments: str) -> dict[str, dict[str, int]]:
    done = varbench("cache", "--json", *arguments, XDG_CACHE_HOME=str(home.parent))
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)["kinds"]
    return found


def test_what_is_kept_is_listed_by_kind(varbench: CommandLine, home: Path) -> None:
    found = told(varbench, home)
    assert set(found) == set(KINDS)
    assert found["weights"] == {"entries": 2, "bytes": 3100} and found["tokens"] == {"entries": 1, "bytes": 50}
    assert found["runs"] == {"entries": 0, "bytes": 0}


def test_only_what_is_old_goes_and_only_of_the_kind(varbench: CommandLine, home: Path) -> None:
    assert told(varbench, home, "--prune", "weights,images", "--older-than", "30")["weights"] == {
        "entries": 1,
        "bytes": 100,
    }
    assert not (home / "weights/old").exists() and (home / "tokens/a.npy").exists()
    assert sum(kind["entries"] for kind in told(varbench, home, "--prune", "all").values()) == 0


def test_a_kind_that_is_none_is_named_and_nothing_goes(varbench: CommandLine, home: Path) -> None:
    done = varbench("cache", "--prune", "all,token", XDG_CACHE_HOME=str(home.parent))
    assert done.returncode == 2 and "'all'" in done.stderr
    done = varbench("cache", "--prune", "token", XDG_CACHE_HOME=str(home.parent))
    assert done.returncode == 2 and "Did you mean 'tokens'?" in done.stderr
    assert (home / "tokens/a.npy").exists()


def test_every_folder_of_the_cache_has_a_kind() -> None:
    with pytest.raises(AssertionError):
        cache_folder("elsewhere")
