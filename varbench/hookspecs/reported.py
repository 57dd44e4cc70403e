"""What a plugin adds to the figures and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.hookspecs.marks import hookspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from varbench.policies import Metric
    from varbench.record import Record
    from varbench.record.sections import Section


@hookspec
def varbench_metrics() -> Sequence[Metric] | None:
    """Gives further columns: means of a number that each of a row's images has, with their interval over images.

    Images come a batch at a time, in a process of its own. A metric that fails costs its own column.

    Example:
        from varbench import hookimpl
        from varbench.policies import Metric

        def brightness(images, labels):
            return images.float().mean(dim=(1, 2, 3)) / 255

        @hookimpl
        def varbench_metrics():
            return [Metric(name="brightness", better="higher", compute=brightness)]
    """


@hookspec
def varbench_report_sections(plugin: str, records: Sequence[Record]) -> Sequence[Section] | None:
    """Gives further panels of the report, made from its records.

    Parameters:
        plugin: the name that the plugin goes by here, with which its rows' names begin.
        records: all rows that the report shows, as copies: the hook runs in a process of its own, with a time limit.

    Example:
        from varbench import hookimpl
        from varbench.record.sections import Section, Table

        @hookimpl
        def varbench_report_sections(plugin, records):
            rows = [(record.row.row, record.status) for record in records if record.row.row.startswith(plugin)]
            return [Section(title="How our rows ended", parts=[Table(columns=("row", "status"), rows=rows)])]
    """
