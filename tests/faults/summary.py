"""The output of `make faults`: a line of progress while it runs, and a table at the end."""

import io
import os
import sys
import time
from dataclasses import dataclass, field

import pytest
from rich.console import Console
from rich.table import Table

NAME = "faults-summary"
# If the line cannot be overwritten, for example in a file, it is written this often.
PAUSE_SECONDS = 15.0


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Summary:
    """A pytest plugin."""

    began: float = field(default_factory=time.monotonic)
    results: list[tuple[str, str, float]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    # pytest redirects both streams while a test runs.
    stream: io.TextIOWrapper = field(default_factory=lambda: os.fdopen(os.dup(sys.stderr.fileno()), "w"))
    told_at: float = 0.0

    def tell(self, text: str) -> None:
        now = time.monotonic()
        if self.stream.isatty():
            self.stream.write(f"\r\033[K{now - self.began:6.0f} s  {text}"[:160])
        elif now - self.told_at >= PAUSE_SECONDS:
            self.stream.write(f"{now - self.began:6.0f} s  {text}\n")
        else:
            return
        self.told_at = now
        self.stream.flush()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell(short_name(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # An error in a fixture is a result too.
        if report.when == "call" or report.outcome != "passed":
            self.results.append((short_name(report.nodeid), report.outcome, report.duration))
        if report.when == "teardown":
            figures = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in report.user_properties)
            self.figures[short_name(report.nodeid)] = figures

    def show(self, seed: int) -> None:
        if self.stream.isatty():
            self.stream.write("\r\033[K")
            self.stream.flush()
        table = Table(title=f"Faults, seed {seed}, {(time.monotonic() - self.began) / 60:.1f} minutes")
        for heading in ("test", "result", "s", "what was done"):
            table.add_column(heading, justify="right" if heading == "s" else "left")
        for name, outcome, seconds in self.results:
            colour = {"passed": "green", "failed": "red"}.get(outcome, "yellow")
            table.add_row(
                name.rpartition("::")[2], f"[{colour}]{outcome}[/]", f"{seconds:.0f}", self.figures.get(name, "")
            )
        Console(file=self.stream, width=None if self.stream.isatty() else 160).print(table)


def short_name(nodeid: str) -> str:
    """Return a test's name without its folder."""
    return nodeid.rpartition("/")[2]
