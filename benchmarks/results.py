"""The results of a run: rows, their bars, the machine; as a table, as a file, and two files side by side."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import programs
from benchmarks.rounds import Rounds

FOLDER = programs.ROOT / "benchmarks" / "results"
_PACKAGES = ("grpcio", "protobuf", "psycopg", "psycopg-binary", "sqlalchemy", "uvloop", "structlog")
# The share of failed calls that a shared machine explains; with more, the row's figures are not valid.
_FAILED_SHARE_MAX = 0.001
_PIPED_COLUMNS = 170
_TITLE = (
    "ratio: throughput against the echo (batches: COPY; stored: none stored), the median of the rounds. by CPU: the"
    " same from the CPU of all processes together. CPU: seconds per 1,000 calls or events. driver, others: cores"
)


@dataclass(slots=True)
class Row:
    """A row of the table. `ratio` is relative to the subject in `against`; `bar` and `aim` are limits of that ratio.

    If the bar is not about a ratio, the row's creator sets `passed`.
    """

    name: str
    per_second: float | None = None
    against: str = ""
    ratio: float | None = None
    ratios: list[float] = field(default_factory=list)
    cpu_ratio: float | None = None
    bar: float | None = None
    aim: float | None = None
    passed: bool | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    server_cpu_per_1000: float | None = None
    postgres_cpu_per_1000: float | None = None
    driver_busy: float | None = None
    others_busy: float | None = None
    errors: dict[str, int] = field(default_factory=dict)
    note: str = ""


def row(
    measured: Rounds,
    against: Rounds | None = None,
    *,
    bar: float | None = None,
    aim: float | None = None,
    units_per_call: int = 1,
    note: str = "",
) -> Row:
    """Make a subject's row; the ratio is the median of the rounds' ratios."""
    ratios = measured.ratios(against) if against else []
    ratio = statistics.median(ratios) if ratios else None
    errors = measured.errors()
    failed = sum(errors.values()) / max(1, sum(each.done.calls_in_all for each in measured.rounds))
    marked = measured.share(lambda each: each.done.marked)
    if marked:
        note = ", ".join(filter(None, (note, f"{marked:.1%} denied or duplicate")))
    units = 1000 / units_per_call
    return Row(
        name=measured.subject.name,
        per_second=measured.per_second * units_per_call,
        against=against.subject.name if against else "",
        ratio=ratio,
        ratios=[round(value, 4) for value in ratios],
        cpu_ratio=measured.cpu_ratio(against) if against else None,
        bar=bar,
        aim=aim,
        passed=None if bar is None or ratio is None else ratio >= bar and failed <= _FAILED_SHARE_MAX,
        p50_ms=measured.percentile_ms(50),
        p95_ms=measured.percentile_ms(95),
        p99_ms=measured.percentile_ms(99),
        server_cpu_per_1000=measured.share(lambda each: each.server_cpu_seconds) * units,
        postgres_cpu_per_1000=measured.share(lambda each: each.postgres_cpu_seconds) * units,
        driver_busy=measured.driver_busy,
        others_busy=measured.others_busy,
        errors=errors,
        note=note,
    )


def print_table(rows: list[Row]) -> None:
    """Print the rows."""
    table = Table(title=_TITLE)
    for heading in ("", "bar", "per second", "ratio", "by CPU", "p50 ms", "p95", "p99", "server CPU", "Postgres"):
        table.add_column(heading, justify="right" if heading not in {"", "bar"} else "left", no_wrap=True)
    table.add_column("driver", justify="right")
    table.add_column("others", justify="right")
    for entry in rows:
        table.add_row(
            entry.name,
            _verdict(entry),
            _number(entry.per_second, ",.0f"),
            _number(entry.ratio, ".3f"),
            _number(entry.cpu_ratio, ".3f"),
            _number(entry.p50_ms, ".2f"),
            _number(entry.p95_ms, ".2f"),
            _number(entry.p99_ms, ".2f"),
            _number(entry.server_cpu_per_1000, ".3f"),
            _number(entry.postgres_cpu_per_1000, ".3f"),
            _number(entry.driver_busy, ".2f"),
            _number(entry.others_busy, ".2f"),
        )
    _console().print(table)
    for entry in rows:
        for note in (entry.note, *(f"{count:,} calls failed: {error}" for error, count in entry.errors.items())):
            if note:
                print(f"{entry.name}: {note}")


def save(rows: list[Row], postgres_version: str, settings: dict[str, object]) -> Path:
    """Write a run's file, named by date and kind of machine, and return its path."""
    now = dt.datetime.now(dt.UTC)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"{platform.system()}-{platform.machine()}-{cores}cores".lower()
    document = {
        "taken_at": now.isoformat(timespec="seconds"),
        "machine": {"kind": kind, "cores": cores, "processor": _processor()},
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "src") else ""),
        "versions": {
            "python": platform.python_version(),
            "postgres": postgres_version,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "settings": settings,
        "rows": [asdict(entry) for entry in rows],
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{now:%Y-%m-%dT%H%M%S}-{kind}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def compare(before: Path, after: Path) -> None:
    """Print two runs side by side. Only ratios can be compared between different machines."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    for label, run in (("before", old), ("after", new)):
        print(f"{label}: {run['taken_at']} {run['commit']} {run['machine']['kind']} {run['settings']}")
    table = Table(
        "", "ratio before", "after", "change", "per second", "after", "server CPU", "after", "p99 ms", "after"
    )
    rows: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in new["rows"]}
    for entry in old["rows"]:
        other = rows.pop(entry["name"], {})
        ratios = entry["ratio"], other.get("ratio")
        change = f"{ratios[1] / ratios[0] - 1:+.0%}" if ratios[0] and ratios[1] else ""
        table.add_row(
            entry["name"],
            *(_number(value, ".2f") for value in ratios),
            change,
            *(_number(value, ",.0f") for value in (entry["per_second"], other.get("per_second"))),
            *(_number(value, ".3f") for value in (entry["server_cpu_per_1000"], other.get("server_cpu_per_1000"))),
            *(_number(value, ".2f") for value in (entry["p99_ms"], other.get("p99_ms"))),
        )
    for name in rows:
        table.add_row(name, "", _number(rows[name]["ratio"], ".2f"), "new")
    _console().print(table)


def _verdict(entry: Row) -> str:
    bar = "" if entry.bar is None else f" {entry.bar:.2f}" + (f", aim {entry.aim:.2f}" if entry.aim else "")
    return "" if entry.passed is None else ("[green]pass[/]" if entry.passed else "[red]FAIL[/]") + bar


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_COLUMNS)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=programs.ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return ""
    return done.stdout.strip()
