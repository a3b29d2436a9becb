"""Findings about rows: one sentence each, with the rows it is about."""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MAX_SHOWN_ROWS = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding about the rows.

    Args:
        severity: "error" if training on the rows would be wrong, "warning" if it may be, "note" for
            what is good to know.
        what: a short code, the same for every finding of its kind.
        sentence: what was found, where, and what to do.
        split: "train", "valid" or "test"; two of them with "and" between for a finding about both.
        rows: numbers (from 1) of the first few rows that it is about; in the last named split.
        count: how many rows it is about; 0 if it is not about rows.
    """

    severity: Severity
    what: str
    sentence: str
    split: str
    rows: tuple[int, ...] = ()
    count: int = 0


@dataclasses.dataclass(frozen=True, repr=False)
class Examination:
    """All findings, errors first, and the number of rows of each split."""

    findings: tuple[Finding, ...]
    split_rows: dict[str, int]

    @classmethod
    def of(cls, findings: Sequence[Finding], split_rows: dict[str, int]) -> "Examination":
        """Sort the findings by their severity."""
        by_severity = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
        return cls(tuple(by_severity), split_rows)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that must be resolved before training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
        lines = [self._heading()]
        for *short_cells, sentence in cells:
            pairs = zip(short_cells, widths, strict=True)
            padded = [cell.ljust(width) for cell, width in pairs]
            lines.append("  ".join([*padded, sentence]))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The same as a table, for a notebook; what comes from the rows is escaped."""
        lines = []
        for cells in self._cells():
            columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            lines.append(f"<tr>{columns}</tr>")
        return f"<p>{html.escape(self._heading())}</p>\n<table>{''.join(lines)}</table>"

    def _heading(self) -> str:
        rows = ", ".join(
            f"{count_of(count, 'row')} of {split}" for split, count in self.split_rows.items()
        )
        counts = []
        for severity in SEVERITIES:
            count = sum(finding.severity == severity for finding in self.findings)
            counts.append(count_of(count, severity))
        return f"{rows}: {', '.join(counts)}"

    def _cells(self) -> list[tuple[str, ...]]:
        """Severity, split, code, rows and sentence of each finding."""
        return [(f.severity, f.split, f.what, _shown_rows(f), f.sentence) for f in self.findings]

    def to_json(self) -> dict[str, Any]:
        """The rows of each split, the number of errors, and the findings as dicts."""
        return {
            "rows": self.split_rows,
            "errors": len(self.errors),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }


def count_of(count: int, noun: str) -> str:
    """A number with its noun: "1 row", "2 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _shown_rows(finding: Finding) -> str:
    if not finding.count:
        return ""
    count = count_of(finding.count, "row")
    if not finding.rows:
        return count
    numbers = ", ".join(map(str, finding.rows))
    if finding.count > len(finding.rows):
        numbers += ", ..."
    return f"{count}: {numbers}"
