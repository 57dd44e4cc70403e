"""The conformance kit: what every method must keep, checked on a tiny random model, on a CPU, in seconds.

    from varbench.testing import check

    assert not check("my_method")

Nothing here is imported before it is used, since pytest loads the kit's fixtures in every session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varbench.testing.kit import Finding as Finding
    from varbench.testing.kit import check as check
    from varbench.testing.kit import invariants as invariants

__all__ = ["Finding", "check", "invariants"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from varbench.testing import kit

        return getattr(kit, name)
    raise AttributeError(f"module 'varbench.testing' has no attribute {name!r}")
