"""Metrics of plugins: from the hook through a run's own process to record, terminal table and page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from varbench.base.hashing import file_hash
from varbench.errors import WrongOutputError
from varbench.measure.calls import Chunk
from varbench.policies import Metric
from varbench.record import Status, load_records
from varbench.run.messages import Measured, Take
from varbench.run.tasks import metering
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


NAMELESS = """
class Nameless:
    better, compute = "lower", len


def varbench_metrics():
    return [Nameless()]
"""

KILLING = """
import os
from varbench.policies import Metric


def compute(images, labels):
    with open(os.environ["ASKED"], "a") as file:
        file.write("once\\n")
    os._exit(3)


def varbench_metrics():
    return [Metric(name="last", better="lower", compute=compute)]
"""

RUN = """
import sys
from varbench.__main__ import main

code = main(sys.argv[1:])
print("imported:", [name for name in sys.modules if name.endswith("_plugin") or name.startswith(("torch", "varbench_plugins"))])
sys.exit(code)
"""


@pytest.mark.slow
def test_a_metric_reaches_record_table_and_page_and_broken_ones_cost_nothing_else(tmp_path: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "run"
    info = site / "metrics-1.0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: metrics\nVersion: 1.0\n")
    plugins = {"measuring": PLUGIN, "nameless": NAMELESS, "killing": KILLING}
    points = "".join(f"{name} = {name}_plugin\n" for name in plugins)
    info.joinpath("entry_points.txt").write_text(f"[varbench]\n{points}")
    for name, source in plugins.items():
        site.joinpath(f"{name}_plugin.py").write_text(source)
    command = [
        sys.executable, "-c", RUN, "run", "--plugins", "measuring", "--quick", "--images", "20", "--batch", "10", "--budget", "0",
        "--dtype", "float32", "--out", str(out),
    ]  # fmt: skip
    places = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "ASKED": str(tmp_path / "asked")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []", "plugins run in children"
    records = {record.row.row: record for record in load_records([out]).records}
    record = records["measuring"]
    assert record.status is Status.COMPLETE
    assert not re.search("prepared|the trace", "; ".join(record.validity.reasons))
    found = record.metrics["measuring.label"]
    assert (found.value, found.n, found.better) == (4.5, 20, "higher")  # 20 balanced labels of ten classes
    assert found.low is not None and found.high is not None and found.low < 4.5 < found.high
    assert set(record.metrics) == {"measuring.label"}
    assert "give one number an image" in record.missing["metrics.measuring.broken"]
    assert "plugin 'nameless' (metrics): varbench_metrics: gave a Nameless among its metrics" in done.stderr
    assert record.missing["metrics.killing"] == "the child ended with exit code 3 before it was done"
    assert (tmp_path / "asked").read_text() == "once\n", (
        "who kills its process is not asked again, for no batch of no row"
    )
    scores = {score.name: score for score in record.quality.scores} if record.quality else {}
    assert scores["FD-shapes"].value is not None, "the metric blackened its own copy only"
    (block,) = blocks_of(list(records.values()))
    assert any("measuring.label" in entry.first.metrics for entry in block.entries)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("measuring ")]
    assert with_interval(interval_of(found)) in line
    page = render(list(records.values()), tmp_path / "page").read_text()
    assert "measuring.label" in page


def test_a_metric_that_writes_over_the_images_gives_no_value_to_the_next_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are handed one file in turn."""
    path = tmp_path / "taken.npz"
    np.savez(path, images=np.full((2, 3, 4, 4), 200, np.uint8))
    taken, before = Take(chunk=Chunk(path=str(path), sha256=file_hash(path)), labels=(0, 1)), file_hash(path)

    def writes(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        np.savez(path, images=np.zeros((2, 3, 4, 4), np.uint8))
        return brightest(images, labels)

    def brightest(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).amax(1)

    computes = {"honest": brightest, "writing": writes}
    monkeypatch.setattr(
        metering, "metrics_of", lambda plugin, _: [Metric(name="m", better="lower", compute=computes[plugin])]
    )

    def asked(plugin: str) -> Measured:
        sent: list[Measured] = []
        channel = SimpleNamespace(requests=lambda: [taken], send=sent.append)
        metering.run(SimpleNamespace(metrics_of=plugin), channel)  # type: ignore[arg-type]  # the parts that it uses
        return sent[0]

    assert asked("honest").values == {"honest.m": (200.0, 200.0)}
    assert asked("writing").values == {"writing.m": (200.0, 200.0)}
    with pytest.raises(WrongOutputError, match=f"the hash {file_hash(path)[:12]}, and {before[:12]} was said"):
        asked("honest")
