"""`varbench list`: methods with their settings, model presets, published protocols, hardware."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from varbench.commands import add_json, usable_plugins, warn

if TYPE_CHECKING:
    from varbench.policies import Settings
    from varbench.rows.manager import PluginInfo, PluginManager

SECTIONS = ("plugins", "presets", "protocols", "hardware")


HELP = "methods with their settings, model presets, protocols, hardware"


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments

    parser = subparsers.add_parser(
        "list",
        help=HELP,
        description="Lists what can be run. Points marked * are those that run unless a row names one.",
    )
    parser.add_argument("section", nargs="?", choices=SECTIONS, help="only this; default: everything")
    add_arguments(parser, "model", model="model whose settings are listed; default: tiny")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.plan.presets import DEFAULT
    from varbench.record.option_forms import given_in

    model = given_in(args, "model").get("model", DEFAULT)
    listed: dict[str, Any] = {}
    lines: list[str] = []
    for section in [args.section] if args.section else SECTIONS:
        if section == "plugins":
            manager = usable_plugins(args)
            known = manager.problems()
            found = settings_of(manager, model)
            warn([problem for problem in manager.problems() if problem not in known], args)
            listed[section] = [_plugin_json(info, settings) for info, settings in found]
            lines += [f"plugins (settings on {model})", *(line for entry in found for line in _plugin(*entry)), ""]
        elif section == "presets":
            listed[section] = _presets()
            lines += ["model presets (--model)", *map(_preset, listed[section]), ""]
        elif section == "protocols":
            listed[section] = _protocols()
            lines += ["published protocols (run --protocol)", *map(_protocol, listed[section]), ""]
        else:
            listed[section] = _hardware()
            lines += ["hardware (varbench plan --hardware, or a file)", *map(_device, listed[section]), ""]
    print(json.dumps(listed, indent=1) if args.json else "\n".join(lines).rstrip())
    return 0


def settings_of(manager: PluginManager, model: str) -> list[tuple[PluginInfo, Settings]]:
    """Settings of every plugin that can be used; a plugin that has none to give has an empty one."""
    from varbench import rows
    from varbench.plan.presets import preset

    return list(rows.every_settings(preset(model).spec, manager=manager))


def _plugin(info: PluginInfo, settings: Settings) -> Iterator[str]:
    yield f"  {info.name:<14} {settings.summary or '(no summary)'}  [{info.distribution} {info.version}]"
    if settings.points:
        default = settings.default_points or settings.points
        names = [f"{name}*" if name in default else name for name in settings.points]
        others = f", and {settings.point_pattern}" if settings.point_pattern else ""
        yield f"    {'points':<14} {' '.join(names)}{others}"
    if settings.recipes:
        default = settings.default_recipes or settings.recipes[:1]
        yield f"    {'recipes':<14} {' '.join(f'{name}*' if name in default else name for name in settings.recipes)}"
    for study in settings.studies:
        yield f"    {'study':<14} {study}"
    for key, parameter in settings.parameters.items():
        default_value = str(parameter.default).lower() if isinstance(parameter.default, bool) else parameter.default
        yield f"    {f':{key}={default_value}':<14} {parameter.help}"


def _plugin_json(info: PluginInfo, settings: Settings) -> dict[str, Any]:
    return {**dataclasses.asdict(info), **dataclasses.asdict(settings)}


def _presets() -> list[dict[str, Any]]:
    from varbench.plan import presets

    found = [presets.preset(name) for name in presets.names()]
    return [
        {
            "name": preset.spec.name,
            "summary": preset.summary,
            "companions": [spec.name for spec in preset.companions.values()],
            "shipped": bool(presets.shipped_files(preset.spec.name)),
            "spec": preset.spec.to_json(),
        }
        for preset in found
    ]


def _preset(preset: dict[str, Any]) -> str:
    spec = preset["spec"]
    sides = " ".join(map(str, spec["sides"]))
    return f"  {preset['name']:<14} {spec['depth']} layers x {spec['width']}, scales {sides}: {preset['summary']}"


def _protocols() -> list[dict[str, Any]]:
    from varbench.plan import protocols

    return [dataclasses.asdict(protocols.protocol(name)) for name in protocols.names()]


def _protocol(protocol: dict[str, Any]) -> str:
    files = [*protocol["weights"].values(), *protocol["files"].values()]
    lines = [f"  {protocol['name']:<14} {protocol['summary']}"]
    for file in files:
        hashed = "hash not known" if file["sha256"] is None else f"sha256 {file['sha256'][:8]}…"
        lines.append(f"    {file['name']}  {hashed}{'' if file['sure'] else ', by one source'}  {file['source']}")
    return "\n".join(lines)


def _hardware() -> list[dict[str, Any]]:
    from varbench.plan.hardware import KNOWN

    return [dataclasses.asdict(device) for device in KNOWN.values()]


def _device(device: dict[str, Any]) -> str:
    rates = ", ".join(f"{dtype} {rate:g}" for dtype, rate in device["tflops"].items())
    return f"  {device['name']:<14} {device['memory_gb']:g} GB, {device['bandwidth_gbs']:g} GB/s, TFLOP/s: {rates}"
