"""The report of a run: one page for people, the same numbers as JSON for programs, and the figures as PNG."""

from peftcls.report.run import Meter, Run
from peftcls.report.write import FIGURES, METRICS, PAGE, THIS_RUN, write_report

__all__ = ["FIGURES", "METRICS", "PAGE", "THIS_RUN", "Meter", "Run", "write_report"]
