"""The HTML report of an artifact: one self-contained file, no script library, no external resource, light and dark, printable.

In: the artifact's manifest, which also keeps the predictions of the compiler and what later verbs measured (`Findings`). Out:
report.html inside the artifact. Each section of the page is a module of its own: a function of manifest and findings to HTML,
empty where there is nothing to show; `page` puts them in order.
"""

from bevel.report.findings import NAME, Findings, record, write_report
from bevel.report.markup import short_name
from bevel.report.page import render
from bevel.report.ranges import write_ranges

__all__ = ["NAME", "Findings", "record", "render", "short_name", "write_ranges", "write_report"]
