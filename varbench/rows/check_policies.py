"""What a hook gave, looked at before anything runs: its type, the parameters of its methods, and names that are nearly right.

A policy inherits neutral defaults, so a misspelt method would be the full model's behaviour under the plugin's name.
Every complaint names the plugin, its distribution, the hook, and what to write instead.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from varbench.errors import did_you_mean
from varbench.experts import OwnParameters, WidthPolicy
from varbench.plan.state import CACHE_TYPES, ITEM
from varbench.policies import (
    PARTS,
    CacheStrategy,
    DecisionPolicy,
    DepthPolicy,
    Generator,
    GuidancePolicy,
    Metric,
    Paper,
    Parameter,
    PartChange,
    Provenance,
    Published,
    Settings,
    StepPolicy,
    StoredForm,
    Study,
    TokenPolicy,
    TrainingSchedule,
    Transformed,
)
from varbench.rows.manager import PluginError, PluginInfo, PluginManager

GIVES: Mapping[str, type] = {
    "varbench_settings": Settings,
    "varbench_depth_policy": DepthPolicy,
    "varbench_step_policy": StepPolicy,
    "varbench_guidance_policy": GuidancePolicy,
    "varbench_token_policy": TokenPolicy,
    "varbench_width_policy": WidthPolicy,
    "varbench_cache_strategy": CacheStrategy,
    "varbench_decision_policy": DecisionPolicy,
    "varbench_transform_model": Transformed,
    "varbench_generator": Generator,
    "varbench_training_schedule": TrainingSchedule,
}
"""What each hook of a row gives: an instance of the class, or of a policy an object with the same members."""

WITHOUT_DEFAULT: Mapping[type, tuple[str, ...]] = {
    DepthPolicy: ("layers",),
    StepPolicy: ("steps",),
    GuidancePolicy: ("branches",),
    TokenPolicy: ("tokens",),
    Generator: ("load", "generate", "work"),
    TrainingSchedule: ("at",),
    WidthPolicy: ("count",),
    DecisionPolicy: ("after", "ways", "decide"),
}
"""Members whose default does nothing: a policy that leaves them out says nothing."""

ONE_WITHOUT_DEFAULT: Mapping[type, tuple[str, ...]] = {
    CacheStrategy: ("keeps", "budget", "dtype", "form", "head_groups"),
}
"""Members of which one must be there for the same reason: what a policy gives beside them changes nothing by itself."""

NEAR = 0.82
"""How like a known name an unknown one must be to be taken for its misspelling: `keep` is, `kept` is not."""


def check(given: object, hook: str, info: PluginInfo) -> None:
    """Refuses what the hook may not give."""
    wanted = GIVES[hook]
    for complaint in _complaints(given, wanted):
        raise _refused(complaint, hook, info)


def metrics_of(name: str, plugins: PluginManager) -> tuple[Metric, ...]:
    """What a plugin gives for `varbench_metrics`, refused where it may not give it."""
    given = plugins.call(name, "varbench_metrics", plugin=name)
    for complaint in _wrong_metrics(given):
        raise _refused(complaint, "varbench_metrics", plugins.info(name))
    return tuple(given or ())


def _refused(complaint: str, hook: str, info: PluginInfo) -> PluginError:
    return PluginError(f"plugin {info.name!r} ({info.distribution}): {hook}: {complaint}", plugin=info.name)


def _complaints(given: object, wanted: type) -> Iterator[str]:
    if inspect.isclass(given):
        yield f"gave the class {given.__name__} and not an instance of it; return {given.__name__}(...)"
    elif wanted is Settings or wanted is Transformed:
        if not isinstance(given, wanted):
            yield f"gave a {type(given).__name__}, not a {wanted.__name__}; return {wanted.__module__}.{wanted.__name__}(...)"
        yield from _wrong_settings(given) if isinstance(given, Settings) else ()
        yield from _wrong_transform(given) if isinstance(given, Transformed) else ()
    else:
        yield from _wrong_members(given, wanted)
        if wanted is CacheStrategy:
            yield from _wrong_cache_type(given)
        elif wanted is WidthPolicy:
            yield from _wrong_own(getattr(given, "own", None))
        elif wanted is StepPolicy:
            backbones = getattr(given, "backbones", {})
            if not isinstance(backbones, Mapping):
                yield f"backbones is a {type(backbones).__name__}; give a mapping of names to ModelSpec"


def _wrong_members(given: object, protocol: type) -> Iterator[str]:
    """Members that are missing, misspelt, of the wrong kind, or that cannot be called as the engine calls them."""
    known = {name: member for name, member in vars(protocol).items() if not name.startswith("_")}
    own = _own_names(given, protocol)
    kind = type(given).__name__
    for name in sorted(own - known.keys()):
        near = difflib.get_close_matches(name, known.keys() - own, n=1, cutoff=NEAR)
        if near:
            yield f"{kind} has {name}, which nothing asks for. Did you mean {near[0]!r}?"
    for name, member in known.items():
        try:
            found = getattr(given, name)
        except AttributeError:
            front = ".".join(protocol.__module__.split(".")[:2])  # what plugins import from
            yield f"gave a {kind}, which has no {name}; subclass {front}.{protocol.__name__}, which has defaults"
            continue
        except Exception as error:
            yield f"{kind}.{name} failed with {type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if not inspect.isroutine(member):
            if inspect.isroutine(found):
                yield f"{kind}.{name} is a method; write @property above it, or set a value"
        elif not callable(found):
            yield f"{kind}.{name} is a {type(found).__name__}; give a method {name}{_parameters(member)}"
        elif not _takes(found, member):
            yield f"{kind}.{name}{inspect.signature(found)} cannot be called as {name}{_parameters(member)}"
    unsaid = {name for name in known.keys() - own if getattr(type(given), name, None) is known[name]}
    for name in WITHOUT_DEFAULT.get(protocol, ()):
        if name in unsaid:
            yield f"{kind} has no {name}(); give {name}{_parameters(known[name])}"
    wanted = ONE_WITHOUT_DEFAULT.get(protocol, ())
    if wanted and unsaid.issuperset(wanted):
        yield f"{kind} changes nothing, since it gives none of {_either(wanted)}"


def _own_names(given: object, protocol: type) -> set[str]:
    """Public methods and properties that the plugin's own classes give; of values, those that stand for a member."""
    own: set[str] = set()
    for kind in type(given).__mro__:
        if kind not in (*protocol.__mro__, Protocol, object):
            own |= {
                name
                for name, member in vars(kind).items()
                if not name.startswith("_")
                and (callable(member) or isinstance(member, property) or name in vars(protocol))
            }
    return own | (set(getattr(given, "__dict__", {})) & set(vars(protocol)))


def _takes(found: Any, member: Any) -> bool:
    """Whether the method can be called with the member's parameters, by place and by name as the engine gives them."""
    parameters = list(inspect.signature(member).parameters.values())[1:]
    by_place = [None for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    by_name = {parameter.name: None for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    try:
        inspect.signature(found).bind(*by_place, **by_name)
    except TypeError:
        return False
    except ValueError:  # a callable that tells nothing of its parameters
        return True
    return True


def _parameters(member: Any) -> str:
    """As `(layer, scale)`: names alone, without `self` and types."""
    parameters = list(inspect.signature(member).parameters.values())[1:]
    plain = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))


def _wrong_cache_type(given: object) -> Iterator[str]:
    dtype, form = getattr(given, "dtype", None), getattr(given, "form", None)
    if isinstance(form, StoredForm):
        if dtype is not None:
            yield f"gave both a form and dtype {dtype!r}; a form says how numbers are stored"
        elif not callable(form.encode) or not callable(form.decode) or form.bits < 1 or form.extra_bytes < 0:
            yield f"form is {form!r}; give functions, bits of 1 or more and extra_bytes of 0 or more"
    elif form is not None:
        yield f"form is a {type(form).__name__}; give a varbench.policies.StoredForm(...)"
    if dtype is None or dtype in CACHE_TYPES:
        return
    if isinstance(dtype, str) and re.match("u?int", dtype):
        yield (
            f"keys and values in {dtype}: an integer type needs scales, and a bare cast has none; give a form, or "
            f"{_either(CACHE_TYPES)}"
        )
    else:
        yield f"keys and values in {dtype!r}: give the name of a type.{did_you_mean(str(dtype), CACHE_TYPES)}"


def _wrong_settings(given: Settings) -> Iterator[str]:
    for name in ("points", "default_points", "recipes", "default_recipes", "neutral"):
        value = getattr(given, name)
        if not isinstance(value, (tuple, list)) or not all(isinstance(entry, str) for entry in value):
            yield f"Settings.{name} is {value!r}; give a tuple of texts"
            return
    for setting in given.neutral:
        if setting and not setting.startswith(("@", ":")):
            yield f"Settings.neutral has {setting!r}; give what is written after the plugin's name, as @{setting} or :ratio=0"
            return
    for name in ("parameters", "studies", "small", "curves"):
        if not isinstance(getattr(given, name), Mapping):
            yield f"Settings.{name} is {getattr(given, name)!r}; give a mapping"
            return
    for name, parameter in given.parameters.items():
        if not isinstance(parameter, Parameter):
            yield f"Settings.parameters[{name!r}] is {parameter!r}; give a Parameter(default=..., help=...)"
        elif not isinstance(parameter.default, (bool, int, float, str)):
            yield f"the default of parameter {name!r} is {parameter.default!r}; give true or false, a number or a text"
    for name, study in given.studies.items():
        if not isinstance(study, Study) or isinstance(study.settings, str):
            yield f"Settings.studies[{name!r}] is {study!r}; give a Study(title=..., settings=(...))"
    if not isinstance(given.published, (tuple, list)) or not all(isinstance(one, Published) for one in given.published):
        yield f"Settings.published is {given.published!r}; give a tuple of Published(...)"
    if not isinstance(given.paper, Paper | None):
        yield f"Settings.paper is {given.paper!r}; give a Paper(title=..., rows=(...), ...)"
    if not isinstance(given.provenance, Provenance | None):
        yield f"Settings.provenance is {given.provenance!r}; give a Provenance(kind=...)"
    for where, text in (
        ("point_pattern", given.point_pattern or "$^"),
        *((f"curves[{name!r}]", text) for name, text in given.curves.items()),
    ):
        try:
            re.compile(text)
        except (re.error, TypeError) as error:
            yield f"Settings.{where} is {text!r}, no regular expression: {error}"
            return
    pattern = re.compile(given.point_pattern or "$^")
    for point in given.default_points:
        if point not in given.points and not pattern.fullmatch(point):
            yield f"default point {point!r} is none of its points.{did_you_mean(point, given.points)}"
    for recipe in given.default_recipes:
        if recipe not in given.recipes:
            yield f"default recipe {recipe!r} is none of its recipes.{did_you_mean(recipe, given.recipes)}"


def _wrong_transform(given: Transformed) -> Iterator[str]:
    if not callable(given.apply):
        yield f"Transformed.apply is {given.apply!r}; give a function that takes the transformer and returns the one to run"
    if not isinstance(given.changes, Mapping):
        yield f"Transformed.changes is {given.changes!r}; give a mapping of parts to PartChange"
        return
    for part, change in given.changes.items():
        if part not in PARTS:
            yield f"Transformed.changes names part {part!r}.{did_you_mean(str(part), PARTS)}"
        elif not isinstance(change, PartChange):
            yield f"Transformed.changes[{part!r}] is {change!r}; give a PartChange(...)"
        else:
            yield from _wrong_change(part, change)


def _wrong_metrics(given: object) -> Iterator[str]:
    if not isinstance(given, tuple | list | None):
        yield f"gave a {type(given).__name__}; give a list of varbench.policies.Metric(...)"
        return
    names: set[str] = set()
    for metric in given or ():
        if not isinstance(metric, Metric):
            yield f"gave a {type(metric).__name__} among its metrics; give varbench.policies.Metric(...)"
        elif not isinstance(metric.name, str) or not metric.name or metric.name in names:
            yield f"a metric is called {metric.name!r}; give a text, and each a name of its own"
        elif metric.better not in ("lower", "higher"):
            yield f"better of metric {metric.name!r} is {metric.better!r}; give 'lower' or 'higher'"
        elif not callable(metric.compute):
            yield f"compute of metric {metric.name!r} is {metric.compute!r}; give a function of images and labels"
        else:
            names.add(metric.name)


def _wrong_own(given: object) -> Iterator[str]:
    if given is None:
        return
    if not isinstance(given, OwnParameters):
        yield f"own is a {type(given).__name__}; give OwnParameters(shapes=..., initial=...)"
        return
    for name, shape in given.shapes.items():
        sizes = isinstance(shape, tuple) and all(isinstance(size, int) and size > 0 for size in shape)
        if not name.isidentifier() or not sizes:
            yield f"OwnParameters.shapes[{name!r}] is {shape!r}; give a tuple of sizes under a name without dots"
    for name in given.whole:
        if name not in given.shapes:
            yield f"OwnParameters.whole names {name!r}.{did_you_mean(name, given.shapes)}"
    if not callable(given.initial):
        yield f"OwnParameters.initial is {given.initial!r}; give a function of the weights and a seed"


def _wrong_change(part: str, change: PartChange) -> Iterator[str]:
    for name in ("weight_type", "bias_type", "compute_type"):
        dtype = getattr(change, name)
        if dtype is not None and dtype not in ITEM:
            yield f"{name} of {part} is {dtype!r}.{did_you_mean(str(dtype), ITEM)}"
    for name in ("flops", "weights"):
        share = getattr(change, name)
        if not isinstance(share, (int, float)) or not 0 <= share < float("inf"):
            yield f"{name} of {part} is {share!r}; give a share of what it was, 0 or more"


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
