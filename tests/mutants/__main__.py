"""`make mutants`: removes each protection in turn, and shows which test fails.

It changes a copy of the checkout, never the checkout itself.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import markup
from rich.console import Console
from rich.table import Table

from tests.mutants.protections import PROTECTIONS, Protection

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("src", "tests", "catalogs", "proto", "examples", "benchmarks", "scripts", "docs", "deploy")
# Ten times the time of the slowest test; a mutant may also hang.
SECONDS_MAX = 120.0
_PASSED, _FAILED = 0, 1

# Prints which code is imported: it must be the copy's, not the checkout's.
_SAME = "import billing_svc, webhook_gateway; print(billing_svc.__file__, webhook_gateway.__file__)"


@contextmanager
def copied() -> Iterator[Path]:
    """Yield a copy of everything that the tests need."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-mutants-") as name:
        copy = Path(name)
        copy.chmod(0o711)
        for folder in COPIED:
            if (ROOT / folder).exists():
                shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ROOT.glob("*.*"):
            if file.is_file():
                shutil.copy2(file, copy)
        yield copy


def tested(copy: Path, tests: Sequence[str]) -> tuple[int, list[str], str]:
    """Run tests in the copy; returns pytest's exit code, the failed tests, and pytest's output."""
    if not tests:
        return _PASSED, [], ""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-p", "no:cacheprovider", "-rfE", "--tb=line", *tests]
    try:
        ended = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, timeout=SECONDS_MAX, check=False, env=environment(copy)
        )
    except subprocess.TimeoutExpired:
        return _FAILED, ["(it hung)"], ""
    said = ended.stdout + ended.stderr
    red = re.findall(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", said, re.MULTILINE)
    return ended.returncode, red, said


def environment(copy: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{copy / 'src'}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"}


def taken_out(copy: Path, one: Protection) -> tuple[int, list[str], str]:
    """Run a protection's tests without the protection."""
    file = copy / one.file
    text = file.read_text()
    if text.count(one.old) != 1:
        return -1, [], f"stands {text.count(one.old)} times in {one.file}: change the list"
    file.write_text(text.replace(one.old, one.new))
    try:
        return tested(copy, one.tests)
    finally:
        file.write_text(text)


def main(
    only: Annotated[str, typer.Option("-k", help="Those alone whose name contains this.")] = "",
) -> None:
    """Remove each protection, and show which test fails."""
    chosen = [one for one in PROTECTIONS if only in one.name]
    began, console = time.monotonic(), Console(stderr=True, soft_wrap=True)
    table = Table(title="Protections taken out")
    for heading in ("protection", "noticed by", "s"):
        table.add_column(heading, justify="right" if heading == "s" else "left")
    bad = 0
    with copied() as copy:
        seen = subprocess.run(
            [sys.executable, "-c", _SAME], cwd=copy, env=environment(copy), capture_output=True, text=True, check=True
        ).stdout
        if seen.count(str(copy)) != 2:
            sys.exit(f"not the copy is tested, but {seen}")
        green: set[str] = set()
        for number, one in enumerate(chosen, 1):
            started = time.monotonic()
            # A test that fails with the protection in place shows nothing.
            code, red, said = tested(copy, [test for test in one.tests if test not in green])
            if code == _PASSED:
                green.update(one.tests)
                code, red, said = taken_out(copy, one)
            elif red:
                code, said = -1, f"red with it in place: {red[0]}"
            if code == _FAILED and red:
                verdict = f"[green]{markup.escape(red[0].rpartition('/')[2])}[/]"
            else:
                bad += 1
                verdict = (
                    "[red]SURVIVED[/]"
                    if code == _PASSED
                    else f"[red]not tested: {markup.escape(said[-300:].strip())}[/]"
                )
            seconds = time.monotonic() - started
            console.print(f"{number} of {len(chosen)}, {time.monotonic() - began:.0f} s: {one.name}: {verdict}")
            table.add_row(one.name, verdict, f"{seconds:.0f}")
    Console(width=160).print(table)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    typer.run(main)
