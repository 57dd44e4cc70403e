"""Panels of plugins, each asked in a process of its own: it gets records as JSON, and gives sections as JSON.

What a plugin does to the records that it is handed, or to the process that it runs in, changes nothing on the page.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from threading import Event
from typing import Any

from varbench.base.collecting import without_collecting
from varbench.base.hashing import file_hash
from varbench.base.whole_files import write_whole
from varbench.errors import UserError
from varbench.record import Record, all_from_text, sections
from varbench.rows.manager import PluginInfo, PluginManager, manager
from varbench.show.forks import forks_are_ready

HOOK = "varbench_report_sections"
SECONDS = 60.0
"""How long a plugin may take for its panels."""
_MOMENT = 0.1
"""After which it is looked whether they are wanted still."""
OURS = "varbench"
"""The distribution whose plugins are trusted to be in one process with each other."""


@dataclass(frozen=True, kw_only=True)
class PluginPanels:
    """What all plugins add to a page."""

    panels: tuple[sections.Panel, ...]
    silent: tuple[str, ...]  # one line for each plugin that failed


def plugin_panels(
    texts: Sequence[bytes],
    *,
    plugins: PluginManager | None = None,
    seconds: float = SECONDS,
    unwanted: Event | None = None,
) -> PluginPanels:
    """The panels of every plugin found here, in the order of their names, for records of which these are the texts. Once they are
    `unwanted`, none is waited for."""
    plugins = plugins or manager()
    context = forks_are_ready()
    panels: list[sections.Panel] = []
    silent: list[str] = []
    with tempfile.TemporaryDirectory(prefix="varbench-") as folder:
        records = _Records.written(Path(folder) / "records.json", texts)
        ours = [name for name in plugins.names() if plugins.info(name).distribution == OURS]
        wait = _Wait(seconds, unwanted or Event())
        without = _without_panels(context, ours, Path(folder) / "without.json", wait)
        for name in plugins.names():
            if name in without or wait.unwanted.is_set():
                continue
            info = plugins.info(name)
            try:
                found = _ask(context, info, records, wait)
            except UserError as error:
                silent.append(str(error))
            else:
                source = f"{info.name} ({info.distribution} {info.version})"
                panels += [sections.Panel(source=source, section=section) for section in found]
    return PluginPanels(panels=tuple(panels), silent=tuple(silent))


@dataclass(frozen=True)
class _Wait:
    seconds: float
    """For each plugin."""
    unwanted: Event
    """For none any more."""

    def until_ended(self, process: ForkServerProcess) -> bool:
        """Whether it came to its end by itself in time."""
        last = time.monotonic() + self.seconds
        while not self.unwanted.is_set() and (left := last - time.monotonic()) > 0 and process.is_alive():
            process.join(min(_MOMENT, left))
        return not process.is_alive()


@dataclass(frozen=True)
class _Records:
    """Records in a file, which only a plugin with something to say reads, and what they were before any plugin ran."""

    path: Path
    sha256: str

    @classmethod
    def written(cls, path: Path, texts: Sequence[bytes]) -> _Records:
        path.write_bytes(b"[" + b",".join(texts) + b"]")
        return cls(path, file_hash(path))

    def read(self) -> list[Record]:
        if file_hash(self.path) != self.sha256:
            raise UserError("another plugin has changed the records that all are handed")
        with without_collecting():
            return all_from_text(self.path.read_bytes())


def _without_panels(context: ForkServerContext, names: Sequence[str], told: Path, wait: _Wait) -> Sequence[str]:
    """Those of our own that have nothing to say, found out in one process: nearly all, and each would take one of its own."""
    _ended(context.Process(target=_tell_without_panels, args=(names, told)), wait)
    return json.loads(told.read_bytes()) if told.exists() else ()


def _tell_without_panels(names: Sequence[str], place: Path) -> None:
    _stand_apart(place.parent)
    write_whole(place, json.dumps([name for name in names if not hasattr(manager().plugin(name), HOOK)]).encode())


def _stand_apart(folder: Path) -> None:
    """In a group of its own, and in no folder of the user's, where a plugin would find or write files by name alone."""
    os.setsid()
    os.chdir(folder)


def _ended(process: ForkServerProcess, wait: _Wait) -> bool:
    """Whether it came to its end by itself in time; what it has started ends with it."""
    process.start()
    assert process.pid is not None
    try:
        return wait.until_ended(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _ask(context: ForkServerContext, info: PluginInfo, records: _Records, wait: _Wait) -> list[sections.Section]:
    """The sections of one plugin, or UserError that names it and its distribution."""
    who = f"plugin {info.name!r} ({info.distribution}): {HOOK}"
    with tempfile.TemporaryDirectory(prefix="varbench-") as folder:
        answer = Path(folder) / "answer.json"
        process = context.Process(target=_answer, args=(info.name, records, answer))
        if not _ended(process, wait):
            raise UserError(f"{who} took longer than {wait.seconds:g} s and was ended")
        if not answer.exists():
            raise UserError(f"{who} ended its process with exit code {process.exitcode} and gave no sections")
        try:
            reply = json.loads(answer.read_bytes())
            found, error = reply["sections"], reply["error"]
        except (ValueError, KeyError, TypeError) as torn:
            raise UserError(f"{who} gave no readable answer: {type(torn).__name__}: {torn}") from torn
    if error is not None:
        raise UserError(f"{error}")
    return [sections.from_data(data) for data in found]


def _answer(name: str, records: _Records, place: Path) -> None:
    """In the process of the plugin: asks it, and writes what it gives."""
    _stand_apart(place.parent)
    os.dup2(2, 1)  # what a plugin prints is no output of ours
    found: list[dict[str, Any]] = []
    error = None
    try:
        found = _sections_of(name, records)
    except UserError as refusal:
        error = str(refusal)
    except Exception as failure:  # a generator runs the plugin's code when it is read
        who = f"plugin {name!r} ({manager().info(name).distribution})"
        error = f"{who}: {HOOK} failed: {type(failure).__name__}: {failure}"
    place.write_text(json.dumps({"sections": found, "error": error}), encoding="utf-8")


def _sections_of(name: str, records: _Records) -> list[dict[str, Any]]:
    plugins = manager()
    if not hasattr(plugins.plugin(name), HOOK):
        return []
    found = plugins.call(name, HOOK, plugin=name, records=records.read())
    data = [sections.to_data(section) for section in sections.given(found or ())]
    json.dumps(data)  # here, where it is the plugin's error that a chart holds what is no JSON
    return data
