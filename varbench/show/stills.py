"""Charts as static SVG, from the same Vega-Lite data as the live ones: for a page without scripts, and for files.

The converter draws. What it gives is read as XML, so that only shapes and text reach a page, no two charts share an id, and
nothing is written that cannot be seen: a page of twenty rows carries its figures in a few hundred kilobytes.
"""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from varbench.errors import UserError
from varbench.measure.environment import cores
from varbench.show.charts import FONT, Spec
from varbench.show.forks import forks_are_ready

WIDTHS = {1: 720, 2: 600, 3: 320}
"""Pixels of a chart that has no width of its own, by how many stand side by side; a narrower place shrinks it."""

_SVG = "{http://www.w3.org/2000/svg}"
_DRAWN = frozenset(
    [
        "svg",
        "g",
        "path",
        "rect",
        "line",
        "circle",
        "text",
        "tspan",
        "defs",
        "clipPath",
        "linearGradient",
        "radialGradient",
        "stop",
        "title",
    ]
)
_KEPT = re.compile(
    r"transform|d|id|width|height|viewBox|[xyr]|d[xy]|[xyrcf]+[12xy]?|offset|opacity|(fill|stroke|font|stop|gradient)\b.*"
    r"|text-anchor|clip-path"
)
_INHERITED = (
    "fill",
    "stroke",
    "stroke-width",
    "stroke-opacity",
    "fill-opacity",
    "font-size",
    "font-weight",
    "text-anchor",
)
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+(?![\de])")


def still(spec: Spec, *, alt: str, name: str, columns: int = 1) -> str:
    """A chart as one `<svg>` element. `name` is unlike that of any other chart on the page; `alt` is read out."""
    import vl_convert

    # Words for every mark would be two thirds of the picture; the live chart has them.
    quiet = {**spec, "config": {**spec.get("config", {}), "aria": False}}
    if spec.get("width") == "container":
        # Where letters are wider than the converter takes them to be, the margin on the left keeps them inside.
        margin = {"left": 14, "right": 5, "top": 5, "bottom": 5}
        quiet |= {"width": WIDTHS[columns], "autosize": {"type": "fit-x", "contains": "padding"}, "padding": margin}
    try:
        drawn = vl_convert.vegalite_to_svg(quiet)
    except ValueError as error:
        raise UserError(f"Vega-Lite cannot draw it: {str(error).strip().splitlines()[0]}") from error
    root = ElementTree.fromstring(drawn)
    _clean(root, name)
    root.attrib |= {"font-family": quiet["config"].get("font", FONT), "role": "img", "aria-label": alt}
    ElementTree.register_namespace("", _SVG.strip("{}"))
    return ElementTree.tostring(root, encoding="unicode")


class DrawnBeside:
    """Charts that processes beside draw, in the order in which they are asked for, while this one does something else: a second
    thread would gain nothing, since the converter holds the interpreter's lock."""

    def __init__(self) -> None:
        self._asked: list[Future[str]] = []
        self.ask({"data": {"values": []}, "mark": "point"}, alt="", name="first")  # it takes a while to begin

    def __enter__(self) -> DrawnBeside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for future in self._asked:
            future.cancel()

    def ask(self, spec: Spec, *, alt: str, name: str, columns: int = 1) -> Callable[[], str]:
        """What waits for the picture, and gives it or the error."""
        draw = functools.partial(still, spec, alt=alt, name=name, columns=columns)
        try:
            future = _processes().submit(draw)
        except BrokenProcessPool:
            return draw
        self._asked.append(future)

        def drawn() -> str:
            try:
                return future.result()
            except BrokenProcessPool:  # as where a script without a guard is run again by who is forked for it
                return draw()

        return drawn


@functools.cache
def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(min(2, cores()), mp_context=forks_are_ready(), initializer=_leave_interrupts)


def _leave_interrupts() -> None:
    """To the process that it draws for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _clean(element: Element, name: str) -> None:
    for child in list(element):
        tag = str(child.tag).removeprefix(_SVG)
        if tag not in _DRAWN:
            raise UserError(f"a chart is drawn of shapes and text, and this one holds <{tag}>")
        _clean(child, name)
        if child.get("display") == "none" or (tag == "g" and not len(child)) or child.get("d") == "M0,0h0v0h0Z":
            element.remove(child)
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif "url(" in value:
            element.set(key, re.sub(r"""url\(['"]?#([^'")]+)['"]?\)""", rf"url(#{name}-\1)", value))
        elif key in ("d", "transform"):
            element.set(key, _LONG_NUMBER.sub(r"\1", value))
        elif key == "font-family" or not (key == "display" or _KEPT.fullmatch(key)):
            del element.attrib[key]
    for key in _INHERITED if element.tag == f"{_SVG}g" and len(element) > 1 else ():
        values = {child.get(key) for child in element}
        if len(values) == 1 and None not in values and key not in element.attrib:
            element.set(key, str(values.pop()))
            for child in element:
                del child.attrib[key]
