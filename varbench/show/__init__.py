"""Reports: any set of records as one page, tables and figures.

`entries` sorts records into rows that may be compared, `answer` says in a sentence which row to deploy, `columns` are the
table's, `figures_*` the figures as charts (`charts` is what these share, `drawn_rows` which rows they draw, `labels` where
names go, `stills` their static form), `header_footer` what stands around them. `page` is the HTML, `payload` what its script
needs, `outputs` the folder. `plugin_sections` asks plugins for panels, in processes of their own.
"""

from varbench.record.sections import Chart, Image, Section, Table, Text

__all__ = ["Chart", "Image", "Section", "Table", "Text"]
