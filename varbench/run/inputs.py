"""Checks the files that a user gives before anything is measured, so that a wrong one costs seconds and leaves nothing behind.

That needs torch, which this process does not load: a child does it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from varbench.errors import UserError
from varbench.run import children
from varbench.run.children import with_last_line
from varbench.run.messages import Failed, FoundSizes, Inspected, Job, from_line
from varbench.spec import ModelSpec

_UNSEEN = "the files that were given could not be looked at: "


def sizes_of(*, vae: Path, var: Path) -> ModelSpec:
    """The sizes of the model in these two checkpoints."""
    command = [sys.executable, "-P", "-m", "varbench.run.tasks.inspecting", str(vae), str(var)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        found = from_line(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = ended.stderr.decode(errors="replace")
        raise UserError(_UNSEEN + with_last_line(f"exit code {ended.returncode}", last)) from None
    if isinstance(found, Failed):
        raise UserError(found.failure.reason)
    assert isinstance(found, FoundSizes)
    return found.model


def check(job: Job) -> Inspected:
    """Raises `UserError` unless weights load as the model, the reference can be scored against, and data can be trained on."""
    return children.answer_of(job, Inspected, if_it_crashes=_UNSEEN)
