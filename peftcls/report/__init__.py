"""The report of a run: one HTML page, the same numbers as JSON, and the figures as PNG."""

from peftcls.report.run import Meter, Run
from peftcls.report.write import FIGURES, METRICS, PAGE, THIS_RUN, write_report

__all__ = ["FIGURES", "METRICS", "PAGE", "THIS_RUN", "Meter", "Run", "write_report"]
