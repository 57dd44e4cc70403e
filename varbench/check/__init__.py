"""The conformance kit: what every method must keep, checked on a tiny random model, on a CPU, in seconds.

    from varbench.check import check

    assert not check("my_method")

Nothing here is imported before it is used, since pytest loads the kit's fixtures in every session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varbench.check.kit import Finding as Finding
    from varbench.check.kit import check as check
    from varbench.check.kit import invariants as invariants

__all__ = ["Finding", "check", "invariants"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from varbench.check import kit

        return getattr(kit, name)
    raise AttributeError(f"module 'varbench.check' has no attribute {name!r}")
