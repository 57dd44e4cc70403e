"""The marks that pluggy knows hooks and their implementations by."""

from __future__ import annotations

import pluggy

PROJECT = "varbench"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
