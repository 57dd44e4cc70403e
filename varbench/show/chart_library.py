"""Vega, Vega-Lite and Vega-Embed as one script, which every page carries."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from importlib.metadata import version

from varbench.base.places import cache_folder
from varbench.base.whole_files import write_whole

_ASKED = "window.vegaEmbed = vegaEmbed;"

SHA256 = {"1.9.0.post1": "373b1f84072b31010f15ceb787be6b415c53936411aae267c8c2b2b6ccde46e7"}
"""What releases of the chart library put together. It takes them a second or two, so these are kept; and whatever else lies in their
place, a plugin's script among it, never comes onto a page."""


@functools.cache
def script() -> str:
    """Ready to stand within a page."""
    return _library().replace("</script", "<\\/script")


def _library() -> str:
    import vl_convert

    known = SHA256.get(version("vl-convert-python"))
    path = cache_folder("scripts") / f"vega-{known}.js"
    with contextlib.suppress(OSError):
        if known is not None and hashlib.sha256(content := path.read_bytes()).hexdigest() == known:
            return content.decode()
    made: str = vl_convert.javascript_bundle(_ASKED)
    if hashlib.sha256(content := made.encode()).hexdigest() == known:
        with contextlib.suppress(OSError):  # a full disk costs the cache, not the page
            write_whole(path, content)
    return made
