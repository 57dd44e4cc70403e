"""Metrics of plugins: from the hook through a run's own process to record, terminal table and page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from varbench.record import Status, load_records
from varbench.show.entries import blocks_of
from varbench.show.formatting import with_interval
from varbench.show.outputs import render
from varbench.show.score_differences import interval_of

PLUGIN = """
from varbench import hookimpl
from varbench.policies import DepthPolicy, Metric


class Half(DepthPolicy):
    def layers(self, scale, backbone):
        return range(0, 16, 2) if scale > 3 else range(16)


def brightness(images, labels):
    assert images.dtype.is_floating_point is False
    images.zero_()  # a copy: what it does to the images is its own affair
    return labels.double()


def broken(images, labels):
    return images.float().mean()  # one number, where one an image is asked for


@hookimpl
def varbench_depth_policy(setting, model):
    return Half()


@hookimpl
def varbench_metrics():
    return [
        Metric(name="label", better="higher", compute=brightness),
        Metric(name="broken", better="lower", compute=broken),
    ]
"""


@pytest.mark.slow
def test_a_metric_reaches_record_table_and_page_and_a_broken_one_costs_nothing_else(tmp_path: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "run"
    info = site / "metrics-1.0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: metrics\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[varbench]\nmeasuring = measuring_plugin\n")
    site.joinpath("measuring_plugin.py").write_text(PLUGIN)
    command = [
        sys.executable, "-m", "varbench", "run", "--plugins", "measuring", "--quick", "--images", "20", "--batch", "10", "--budget", "0",
        "--dtype", "float32", "--out", str(out),
    ]  # fmt: skip
    places = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = {record.row.row: record for record in load_records([out]).records}
    record = records["measuring"]
    assert record.status is Status.COMPLETE
    found = record.metrics["measuring.label"]
    assert (found.value, found.n, found.better) == (4.5, 20, "higher")  # 20 balanced labels of ten classes
    assert found.low is not None and found.high is not None and found.low < 4.5 < found.high
    assert set(record.metrics) == {"measuring.label"}
    assert "give one number an image" in record.missing["metrics.measuring.broken"]
    scores = {score.name: score for score in record.quality.scores} if record.quality else {}
    assert scores["FD-shapes"].value is not None, "the metric blackened its own copy only"
    (block,) = blocks_of(list(records.values()))
    assert any("measuring.label" in entry.first.metrics for entry in block.entries)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("measuring ")]
    assert with_interval(interval_of(found)) in line
    page = render(list(records.values()), tmp_path / "page").read_text()
    assert "measuring.label" in page
