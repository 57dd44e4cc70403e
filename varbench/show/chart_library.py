"""Vega, Vega-Lite and Vega-Embed as one script, which every page carries."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from importlib.metadata import version

from varbench.base.hashing import digest
from varbench.base.places import cache_folder
from varbench.base.whole_files import write_whole

_ASKED = "window.vegaEmbed = vegaEmbed;"


@functools.cache
def script() -> str:
    """As the chart library puts it together, which takes it a second or two: kept by the library's version and by its content."""
    import vl_convert

    folder = cache_folder("scripts") / f"vega-{version('vl-convert-python')}-{digest([_ASKED])[:8]}"
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = path.read_bytes()
            if path.name == _name(found):
                return found.decode()
    made: str = vl_convert.javascript_bundle(_ASKED).replace("</script", "<\\/script")
    content = made.encode()
    with contextlib.suppress(OSError):  # a full disk costs the cache, not the page
        write_whole(folder / _name(content), content)
    return made


def _name(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}.js"
