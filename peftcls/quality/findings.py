"""What an examination of rows found: a finding is one sentence with its place, and an examination is all of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN_ROWS = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        severity: "error" where training on the rows would be wrong, "warning" where it may be, "note" for what is good to know.
        what: a short code, the same for every finding of its kind.
        sentence: what was found, where, and what to do.
        split: "train", "valid" or "test"; two of them with "and" between where it is about both.
        rows: numbers of the first few rows, from 1; of the last named split. Empty where it is about no row in particular.
        count: of all the rows that it is about; 0 likewise.
    """

    severity: Severity
    what: str
    sentence: str
    split: str
    rows: tuple[int, ...] = ()
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Examination:
    """All findings, errors first, and how many rows each split has."""

    findings: tuple[Finding, ...]
    split_rows: dict[str, int]

    @classmethod
    def of(cls, findings: Sequence[Finding], split_rows: dict[str, int]) -> "Examination":
        """The findings in the order of their severity."""
        return cls(
            tuple(sorted(findings, key=lambda found: SEVERITIES.index(found.severity))), split_rows
        )

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stand in the way of training."""
        return tuple(found for found in self.findings if found.severity == "error")

    def __str__(self) -> str:
        counts = [
            sum(found.severity == severity for found in self.findings) for severity in SEVERITIES
        ]
        rows = ", ".join(f"{count} rows of {split}" for split, count in self.split_rows.items())
        told = ", ".join(
            f"{count} {severity}{'s' * (count != 1)}"
            for count, severity in zip(counts, SEVERITIES, strict=True)
        )
        lines = [
            (found.severity, found.split, found.what, _places(found)) for found in self.findings
        ]
        widths = [max((len(line[i]) for line in lines), default=0) for i in range(4)]
        return "\n".join(
            [
                f"{rows}: {told}",
                *(
                    "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True))
                    + "  "
                    + found.sentence
                    for line, found in zip(lines, self.findings, strict=True)
                ),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The same for another program: the rows of each split, the number of errors, and the findings' fields."""
        return {
            "rows": self.split_rows,
            "errors": len(self.errors),
            "findings": [dataclasses.asdict(found) for found in self.findings],
        }


def _places(found: Finding) -> str:
    if not found.count:
        return ""
    shown = ", ".join(map(str, found.rows)) + (", ..." if found.count > len(found.rows) else "")
    return f"{found.count} row{'s' * (found.count != 1)}" + (f": {shown}" if found.rows else "")
