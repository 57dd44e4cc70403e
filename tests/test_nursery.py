"""Children are copies of a process that has loaded torch: each stands alone, and ends as one of its own would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import runs
from scripted import options

from varbench.plan import presets
from varbench.record import Status, encode
from varbench.run import children, nursery
from varbench.run.children import Child, ChildEndedError
from varbench.run.messages import Job, Ready, Resolved


@pytest.fixture
def job() -> Job:
    """The full model with random weights, that waits to be asked."""
    chosen = options(plugins="full_var", weights="random", device="cpu")
    return Job(task="making", options=chosen, model=presets.preset("tiny").spec, rows=("full_var",))


def begun(job: Job, tmp_path: Path) -> Child:
    return children.start(job, folder=tmp_path, log=tmp_path / "log")


def told(path: Path) -> str:
    for _ in range(600):
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text().strip()
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


def above(child: Child) -> int:
    """The process that it is a copy of."""
    return int(Path(f"/proc/{child.pid}/stat").read_text().split()[3])


def test_children_are_copies_of_one_that_loads_once(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with begun(job, tmp_path) as first:
        first.receive(Ready)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        with begun(job, tmp_path) as second:
            second.receive(Ready)
            assert above(first) == above(second) == (nurse := above(first))
            assert os.getpgid(first.pid) == first.pid != second.pid == os.getpgid(second.pid)
    assert (first.exit_code, second.exit_code) == (0, 0)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # torch looks at it when it is loaded
    with begun(job, tmp_path) as third:
        third.receive(Ready)
        assert above(third) != nurse


def test_what_is_copied_holds_no_plugin_and_has_computed_nothing(tmp_path: Path) -> None:
    code = """
    import os, sys
    from varbench.run import nursery
    out = os.dup(1)
    nursery._load()
    plugins = [name for name in sys.modules if name.startswith(("varbench_plugins", "varbench_baselines"))]
    loaded = {"torch", "varbench.run.tasks.making"} <= set(sys.modules)
    os.write(out, repr((plugins, loaded, len(os.listdir("/proc/self/task")))).encode())
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], env=environment, capture_output=True, check=True
    )
    assert done.stdout.decode() == "([], True, 1)", done.stderr


def test_a_child_that_was_told_to_do_something_else_is_not_listened_to(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the file with its job was written over: what scores, trains and resolves is held to its job as subjects are."""
    asked, other = (replace(job, task="resolving", options=replace(job.options, seed=seed)) for seed in (0, 1))
    monkeypatch.setattr(
        children, "write_whole", lambda path, content: path.write_text(json.dumps(encode(other, "job")))
    )
    with begun(asked, tmp_path) as child, pytest.raises(ChildEndedError) as ended:
        child.receive(Resolved)
    assert f"told to do {other.digest[:12]}, and {asked.digest[:12]} was asked of it" in ended.value.failure.reason


@pytest.mark.parametrize(
    ("number", "words", "status"),
    [(signal.SIGSEGV, "SIGSEGV", Status.CRASHED), (signal.SIGTERM, "SIGTERM", Status.CRASHED)],
)
def test_how_a_child_ended_is_known(
    job: Job, tmp_path: Path, number: signal.Signals, words: str, status: Status
) -> None:
    with begun(job, tmp_path) as child:
        child.receive(Ready)
        os.kill(child.pid, number)
        with pytest.raises(ChildEndedError, match=words) as ended:
            child.receive(Ready)
    assert ended.value.failure.status is status and child.exit_code == -number


@pytest.mark.slow
def test_a_nursery_that_is_lost_costs_its_children_and_no_others(job: Job, tmp_path: Path) -> None:
    with begun(job, tmp_path) as child:
        child.receive(Ready)
        os.kill(above(child), signal.SIGKILL)
        with pytest.raises(ChildEndedError, match="SIGKILL"):
            child.receive(Ready)
    with begun(job, tmp_path) as child:
        child.receive(Ready)


def test_children_die_with_a_parent_that_is_killed(job: Job, tmp_path: Path) -> None:
    (tmp_path / "job").write_text(json.dumps(encode(job, "job")))
    code = f"""
    import json, sys, time
    from pathlib import Path
    from varbench.record import decode
    from varbench.run import children
    from varbench.run.messages import Job, Ready
    folder = Path({str(tmp_path)!r})
    child = children.start(decode(Job, json.loads((folder / "job").read_text()), "job"), folder=folder, log=folder / "log")
    child.receive(Ready)
    (folder / "pids").write_text(f"{{child.pid}} {{Path(f'/proc/{{child.pid}}/stat').read_text().split()[3]}}\\n")
    time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    pids = [int(pid) for pid in told(tmp_path / "pids").split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    time.sleep(0.5)
    assert not any(map(runs, pids))


def test_none_is_left_when_all_is_done(job: Job, tmp_path: Path) -> None:
    with begun(job, tmp_path) as child:
        child.receive(Ready)
        nurse = above(child)
    nursery.end_all()
    assert not runs(nurse)
