"""What a child says of the code that it runs, so that its parent can hold that against what was prepared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from varbench.rows.manager import PluginInfo, manager
from varbench.run import identity
from varbench.run.messages import ChildCode
from varbench.run.tasks.resolving import resolved_plugin


def code_of(infos: Iterable[PluginInfo]) -> ChildCode:
    """Of these plugins, and of what measures. Files that several plugins lie in are read once."""
    plugins = {info.name: resolved_plugin(info, manager()) for info in infos}
    places = {name: replace(plugin, name="") for name, plugin in plugins.items()}
    hashes = {place: identity.plugin_hash(place) for place in set(places.values())}
    return ChildCode(
        measuring=identity.measuring_hash(),
        plugin_files={name: plugin.files for name, plugin in plugins.items()},
        plugin_hashes={name: hashes[place] for name, place in places.items()},
    )
