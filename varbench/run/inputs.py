"""Checks the files that a user gives before anything is measured, so that a wrong one costs seconds and leaves nothing behind.

That needs torch, which this process does not load: a child does it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from varbench.errors import UserError
from varbench.run import children
from varbench.run.children import ChildEndedError
from varbench.run.messages import Job
from varbench.spec import ModelSpec


def sizes_of(*, vae: Path, var: Path) -> ModelSpec:
    """The sizes of the model in these two checkpoints."""
    command = [sys.executable, "-m", "varbench.run.tasks.inspecting", str(vae), str(var)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        found = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise UserError(_unseen(f"exit code {ended.returncode}", ended.stderr)) from None
    if "error" in found:
        raise UserError(found["error"])
    return ModelSpec.from_json(found["sizes"])


def check(job: Job) -> None:
    """Raises `UserError` unless weights load as the model, the reference can be scored against, and data can be trained on."""
    with tempfile.TemporaryDirectory(prefix="varbench-") as folder:
        child = children.start(job, folder=Path(folder), log=Path(folder) / "log", patience=children.PATIENCE)
        try:
            with child:
                child.receive()
        except ChildEndedError as error:
            explained = error.failure.traceback is not None  # an exception of its own, and no crash
            raise UserError(
                error.failure.reason if explained else _unseen(error.failure.reason, child.stderr_tail)
            ) from error


def _unseen(why: str, stderr: str) -> str:
    last = stderr.strip().splitlines()[-1:]
    return f"the files that were given could not be looked at: {'; '.join([why, *last])}"
