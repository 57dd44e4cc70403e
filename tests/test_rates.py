"""`varbench env --calibrate`: what a machine reaches is measured once, kept, and predicted with."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from conftest import CommandLine
from scripted import a_run
from torch.utils._python_dispatch import TorchDispatchMode

from varbench import load_pipeline, rows
from varbench.__main__ import main
from varbench.errors import UserError
from varbench.measure import rates
from varbench.measure.environment import cores, environment
from varbench.measure.kept_rates import all_kept, keep_rates, kept_rates
from varbench.plan import cost
from varbench.plan.compiler import compile_plan
from varbench.plan.hardware import KNOWN, as_toml, from_file
from varbench.plan.presets import preset
from varbench.record import Record
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.messages import ChildCode, Ready
from varbench.run.prepare import hardware_like
from varbench.show.advice import advice
from varbench.show.entries import blocks_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_machine_is_measured_and_predicted_with(varbench: CommandLine, tmp_path: Any) -> None:
    """Also where torch computes with fewer threads than there are cores, as it does by itself on some machines."""
    cache = str(tmp_path / "cache")
    before = varbench("plan", "variant", "--hardware", "here", XDG_CACHE_HOME=cache)
    assert before.returncode == 2 and "nothing was measured; see varbench env --calibrate" in before.stderr
    found = varbench("env", "--calibrate", "--device", "cpu", "--json", XDG_CACHE_HOME=cache, OMP_NUM_THREADS="1")
    assert found.returncode == 0, found.stderr
    measured = json.loads(found.stdout)
    assert set(measured["tflops"]) == {"float32", "bfloat16", "float16"}
    assert all(0.001 < rate < 100 for rate in measured["tflops"].values())
    assert 0.1 < measured["bandwidth_gbs"] < 2000 and 0.1 < measured["operator_us"] < 1000
    assert set(measured["efficiency"]) == {"float32", "bfloat16"}
    assert all(0 < share <= 1 for share in measured["efficiency"].values())
    (kept,) = all_kept()
    assert hardware_like("cpu", cores()) == kept
    assert kept.tflops == measured["tflops"] and "--calibrate on 20" in kept.source and kept.measured
    total = psutil.virtual_memory().total / 2**30
    assert 0 < kept.memory_gb <= total + 0.1, "in the unit that data sheets and `plan` have"
    after = varbench("plan", "variant", "--hardware", "here", XDG_CACHE_HOME=cache)
    assert f"s on {kept.name}" in after.stdout and "a bound" not in after.stdout


@pytest.mark.parametrize("what", [(), ("--training", "--batch", "64")])
def test_only_what_nobody_measured_is_a_bound(
    what: tuple[str, ...], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(replace(KNOWN["L20"], name="mine", measured=True)))
    assert main(["plan", "variant@d8", *what, "--hardware", f"L20,{path}"]) == 0
    said = capsys.readouterr().out
    assert "a bound on L20" in said and "L20, mine" not in said


def test_a_faster_machine_is_measured_as_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that nothing but the products move: a test's real time is its neighbours' too."""
    now = speed = 0.0

    def product(x: torch.Tensor, weight: torch.Tensor, bias: None) -> torch.Tensor:
        nonlocal now
        now += 2 * x.numel() * len(weight) / speed
        return x

    monkeypatch.setattr(rates, "product", product)
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=lambda: now))
    for speed in (2e11, 5e11):
        assert rates._rate(torch.device("cpu"), torch.float32, 0.3) == pytest.approx(speed)


def test_what_the_engine_reaches_is_had_from_two_batches() -> None:
    """A machine that reaches two fifths of its roofline, and takes 40 µs an operator; and one whose clock says nonsense."""
    bounds: dict[str, Any] = {"bound_few": 0.002, "bound_many": 0.1, "operators": 1_800}
    few, many = (bound / 0.4 + 1_800 * 40e-6 for bound in (0.002, 0.1))
    found = rates.solved(KNOWN["cpu-2-cores"], few=few, many=many, **bounds)
    assert (found.share, found.operator) == (pytest.approx(0.4), pytest.approx(40e-6))
    smallest = replace(KNOWN["cpu-2-cores"], operator_us=6.0)
    found = rates.solved(smallest, few=0.2, many=0.1, **bounds)
    assert found.share == 1 and found.operator > 6e-6
    assert rates.solved(smallest, few=0.001, many=1.0, **bounds).operator == pytest.approx(6e-6)


def test_what_was_measured_comes_before_the_data_sheet() -> None:
    assert hardware_like("cpu", 2) == KNOWN["cpu-2-cores"]
    mine = replace(KNOWN["H100-SXM"], name="NVIDIA H100 80GB HBM3", operator_us=1.5)
    keep_rates(mine)
    assert hardware_like("NVIDIA H100 80GB HBM3", 8) == mine
    assert hardware_like("NVIDIA L20", 8) == KNOWN["L20"]
    assert kept_rates("cpu", 2) is None


@pytest.mark.parametrize(
    ("name", "mib", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 81_559, "H100-SXM"),
        ("NVIDIA H100 80GB HBM3", None, "H100-SXM"),
        ("NVIDIA H100 PCIe", 81_559, None),
        ("NVIDIA H100 NVL", 95_830, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9_856, None),
        ("NVIDIA H800", 81_559, None),
        ("NVIDIA GH200 480GB", 97_871, None),
        ("NVIDIA H200", 143_771, "H200-SXM"),
        ("NVIDIA H200 NVL", 143_771, None),
        ("NVIDIA A100-SXM4-80GB", 81_920, "A100-SXM-80GB"),
        ("A100-SXM4-80GB", 81_251, "A100-SXM-80GB"),
        ("NVIDIA A100-SXM4-80GB", 40_960, None),
        ("NVIDIA A100-SXM4-40GB", 40_960, None),
        ("NVIDIA A100 80GB PCIe", 81_920, None),
        ("NVIDIA A100-PCIE-40GB", 40_960, None),
        ("NVIDIA L20", 46_068, "L20"),
        ("NVIDIA L20", 23_034, None),
        ("NVIDIA L2", 24_570, None),
        ("NVIDIA L40S", 46_068, "L40S"),
        ("NVIDIA L40", 46_068, None),
        ("NVIDIA GeForce RTX 4090", 24_564, "RTX-4090"),
        ("NVIDIA GeForce RTX 4090 D", 24_564, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16_376, None),
        ("NVIDIA GeForce RTX 3060", 12_288, None),
        ("NVIDIA GeForce RTX 5090", 32_607, None),
        ("NVIDIA RTX A6000", 49_140, None),
        ("Tesla V100-SXM2-32GB", 32_768, None),
    ],
)
def test_a_card_is_known_by_its_whole_name_and_its_memory(name: str, mib: int | None, known: str | None) -> None:
    found = hardware_like(name, 8, None if mib is None else mib << 20)
    assert (found and found.name) == known


def test_a_record_says_that_nothing_is_predicted_for_a_card(tmp_path: Any) -> None:
    run = a_run(tmp_path, plugins="variant@d8")
    row = run.rows["variant@d8"]

    def filled(**where: Any) -> Record:
        there = replace(environment("cpu"), **where)
        code = ChildCode(measuring="", plugin_files={}, plugin_hashes={})
        ready = Ready(job="", environment=there, weights={}, parameters={}, plans={}, code=code, disturbed=None)
        return fill(run, row, Findings(loaded=ready), floors={})

    record = filled(device="NVIDIA GeForce RTX 3060", device_memory_bytes=12 << 30)
    assert record.plan is not None and record.plan.hardware is None and record.plan.predicted_seconds is None
    assert record.why("plan.hardware") == (
        "no data sheet of NVIDIA GeForce RTX 3060 is known, and it was not calibrated"
    )
    block = blocks_of([record])[0]
    (notice,) = [one for one in advice(block) if "no time is predicted" in one.text]
    assert "NVIDIA GeForce RTX 3060" in notice.text and notice.next_command == "varbench env --calibrate --device cpu"
    record = filled(device="NVIDIA L20", device_memory_bytes=46_068 << 20)
    assert record.plan is not None and record.plan.hardware == "L20" and record.plan.predicted_seconds
    assert record.plan.hardware_source == KNOWN["L20"].source and record.plan.bound


def test_the_file_is_as_it_is_read(tmp_path: Any) -> None:
    for device in (
        *KNOWN.values(),
        replace(KNOWN["L20"], efficiency={"bfloat16": 0.5}, operator_us=2.0, source='a "b"', measured=True),
    ):
        path = tmp_path / "device.toml"
        path.write_text(as_toml(device))
        assert from_file(path) == device
    path.write_text(as_toml(device).replace("operator_us = 2.0", "operator_us = -1"))
    with pytest.raises(UserError, match="operator_us is -1"):
        from_file(path)
    path.write_text(as_toml(device).replace("measured = true", "measured = 1"))
    with pytest.raises(UserError, match="measured is 1; give true or false"):
        from_file(path)


class Operators(TorchDispatchMode):
    """Counts those that touch memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.name() and "detach" not in func.name():
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("name", ["full_var", "variant@d8", "variant@d2"])
def test_the_number_of_operators_is_about_that_of_the_engine(name: str) -> None:
    pipe = load_pipeline("tiny", dtype="float32")
    plan = pipe.compile(name)[0]
    pipe.generate([0, 1], method=name)
    with Operators() as seen:
        pipe.generate([0, 1], method=name)
    counted = sum(step.operators for step in cost.work(plan, batch=2, dtype="float32", device="cpu").steps)
    assert counted == pytest.approx(seen.count, rel=0.15)


def test_operators_take_their_time_in_a_prediction() -> None:
    spec = preset("tiny").spec
    plans = [compile_plan(spec, rows.resolve(name, spec).policies) for name in ("full_var", "variant@d2")]
    fast = replace(KNOWN["cpu-2-cores"], tflops={"float32": 1e6}, bandwidth_gbs=1e9, operator_us=7.0)
    full, two = (cost.predict(cost.work(plan, batch=1, dtype="float32", device="cpu"), fast) for plan in plans)
    assert full.transformer == pytest.approx(7e-6 * (96 * 12 + 6 * 110), rel=0.01)
    assert two.transformer == pytest.approx(7e-6 * (54 * 12 + 6 * 110), rel=0.01)
