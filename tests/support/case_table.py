"""The one table that a suite prints at its end: case, seconds, result; below it, what was measured on the way."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

_RESULTS = {"passed": "ok", "failed": "LOST", "skipped": "skipped"}


@dataclass
class Case:
    """A test so far: set-up and tear-down count as well, and the worst result is the one that is shown."""

    seconds: float = 0.0
    result: str = "ok"


class CaseTable:
    """Collects the reports of the tests below one folder.

    Args:
        folder: How their identifiers begin.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._cases: dict[str, Case] = {}
        self.figures: list[str] = []
        """Sentences with what was measured, in the order of their arrival."""

    def add(self, report: pytest.TestReport) -> None:
        """Take note of a part of a test."""
        if not report.nodeid.startswith(self._folder):
            return
        case = self._cases.setdefault(report.nodeid.split("::")[-1].removeprefix("test_").replace("_", " "), Case())
        case.seconds += report.duration
        if not report.passed:
            case.result = _RESULTS[report.outcome]

    def show(self, reporter: pytest.TerminalReporter) -> None:
        """Print the table; nothing when no test ran."""
        if not self._cases:
            return
        width = max(map(len, self._cases))
        reporter.write_sep("=", "cases")
        reporter.write_line(f"{'case':{width}}  seconds  result")
        for name, case in self._cases.items():
            reporter.write_line(f"{name:{width}}  {case.seconds:7.1f}  {case.result}")
        lost = sum(case.result != "ok" for case in self._cases.values())
        reporter.write_line(f"{len(self._cases)} cases, {lost} not ok")
        for figure in self.figures:
            reporter.write_line(figure)
