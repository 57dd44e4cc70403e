"""The pytest plugin: every promise of a method as a test of its own.

    @pytest.mark.varbench("my_method")
    def test_promises(varbench_promise):
        varbench_promise()

The mark takes what `varbench.check.check` takes. Nothing is imported here before a test asks for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from varbench.check.kit import Finding

FIXTURE, MARK = "varbench_promise", "varbench"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(method): the method whose promises the fixture {FIXTURE} checks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if FIXTURE in metafunc.fixturenames:
        from varbench.check import invariants

        metafunc.parametrize(FIXTURE, list(invariants()), indirect=True)


@functools.cache
def _findings(method: object) -> list[Finding]:
    """All findings of a method, made once: the invariants share generations."""
    from varbench.check import check

    return check(method)


@pytest.fixture
def varbench_promise(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Fails with the numbers when the marked method breaks the promise that this test is about."""
    mark = request.node.get_closest_marker(MARK)
    if mark is None or len(mark.args) != 1:
        raise pytest.UsageError(
            f"{request.node.nodeid} uses {FIXTURE}: say for which method, by @pytest.mark.{MARK}('name')"
        )

    def held() -> None:
        findings = _findings(mark.args[0])
        broken = [str(finding) for finding in findings if finding.invariant in (request.param, "runs")]
        if broken:
            pytest.fail("\n".join(broken), pytrace=False)

    return held
