"""Processes beside a report's own: forked from one that has the imports, so that each costs milliseconds."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

SAFE_PATH = "PYTHONSAFEPATH"
_IMPORTS = ["varbench.record.store", "varbench.rows.manager", "varbench.policies", "varbench.show.stills"]


def forks_are_ready() -> ForkServerContext:
    """The process that others are forked from. It must not look for modules in the folder where the user stands."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    forkserver.ensure_running()
    if before is None:
        del os.environ[SAFE_PATH]
    else:
        os.environ[SAFE_PATH] = before
    return context
