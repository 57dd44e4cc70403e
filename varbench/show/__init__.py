"""Reports: any set of records as one page, tables and figures.

`entries` sorts records into rows that may be compared, `answer` says in a sentence what they show, `columns` are the
table's, `figures*` the pictures as data, `page` the HTML, `outputs` the folder. `sections` is what plugins may add.
"""

from varbench.record.sections import Chart, Image, Section, Table, Text

__all__ = ["Chart", "Image", "Section", "Table", "Text"]
