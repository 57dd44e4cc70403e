"""Energy of processors by a folder that looks as the system's does; no clock beyond a window of no length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from varbench.measure import energy, powercap


def zone(root: Path, folder: str, name: str, value: int, most: int = 1_000_000) -> Path:
    made = root / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "energy_uj").write_text(f"{value}\n")
    (made / "max_energy_range_uj").write_text(f"{most}\n")
    return made


def test_joules_of_all_packages_by_images_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 900_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 0)
    zone(tmp_path, "intel-rapl:2", "psys", 0)
    zone(tmp_path, "dtpm", "dtpm", 0)

    def call() -> int:
        (first / "energy_uj").write_text("400000")
        (second / "energy_uj").write_text("200000")  # over its end: 0.3 J
        return 4

    monkeypatch.setattr(powercap, "packages", lambda whole=powercap.packages: whole(tmp_path))
    found = energy.energy(call, device=torch.device("cpu"), window=1e-9)
    assert found.joules_per_image == pytest.approx((0.3 + 0.3) / 4)
    assert found.source == "powercap, 2 whole packages"


def test_where_there_is_no_counter_the_reason_is_given(tmp_path: Path) -> None:
    with pytest.raises(powercap.PowercapError, match="shows no energy counter"):
        powercap.packages(tmp_path / "none")
    found = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (found / "energy_uj").unlink()
    with pytest.raises(powercap.PowercapError, match="cannot be read"):
        powercap.read([found])


def test_a_counter_for_root_only_says_how_to_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = zone(tmp_path, "intel-rapl:0", "package-0", 1)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(powercap.PowercapError, match=r"root only: sudo chmod a\+r .*energy_uj"):
        powercap.read([found])
