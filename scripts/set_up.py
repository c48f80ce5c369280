# ruff: noqa: INP001 - a program of its own, in no package
"""Make .venv with everything that constraints.txt pins; `--refresh` makes new pins instead.

Runs with whatever Python 3.11 or newer is there, so it imports only the standard library.
"""

import argparse
import importlib.util
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
VERSION_LEAST = (3, 11)

# The build backend comes first and is pinned too: pip would fetch the newest one into a place of its own.
BACKEND = ("hatchling", "editables")

# Of pip's output; enough to see why it failed.
OUTPUT_LINES_MAX = 30

HEADER = """\
# Every package of a development environment, pinned. `make constraints` makes it anew from pyproject.toml.
"""


def check_python() -> None:
    """End with a sentence if this Python cannot make the environment."""
    if sys.version_info < VERSION_LEAST:
        sys.exit(f"Python {'.'.join(map(str, VERSION_LEAST))} or newer is needed; this is {sys.version.split()[0]}")
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit("this Python cannot make a venv, as ensurepip is missing; on Debian: apt-get install python3-venv")


def make_environment(folder: Path) -> Path:
    """Make a venv, or make a broken one anew, and return its Python."""
    python = folder / "bin" / "python"
    # Its links may have outlived the Python that they point to.
    works = [str(python), "-m", "pip", "--version"]
    if not python.exists() or subprocess.run(works, capture_output=True, check=False).returncode != 0:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    return python


def install(python: Path, requirements: list[str]) -> None:
    """Install with pip, and show how far it has come."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *requirements]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None  # noqa: S101 - it was asked for
        collected = itertools.count(1)
        for line in pip.stdout:
            lines.append(line)
            if line.startswith("Collecting "):
                show(f"  {next(collected)} packages: {line.split()[1]}")
            elif line.startswith("Installing collected "):
                show("  unpacking")
    show("")
    if pip.returncode != 0:
        sys.exit("".join(lines[-OUTPUT_LINES_MAX:]) + "pip could not install the packages; the lines above say why")


def show(text: str) -> None:
    """Rewrite the progress line of a terminal; elsewhere progress would only fill a log."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\033[K{text[:width]}")
        sys.stderr.flush()


def set_up() -> None:
    """Make .venv what constraints.txt says."""
    started = time.monotonic()
    sys.stderr.write("Setting up .venv (a minute or two the first time)\n")
    python = make_environment(ROOT / ".venv")
    pinned = ["--constraint", str(CONSTRAINTS)]
    install(python, [*pinned, *BACKEND])
    install(python, [*pinned, "--no-build-isolation", "--editable", ".[dev]"])
    sys.stderr.write(f"Set up in {time.monotonic() - started:.0f} s\n")


def refresh() -> None:
    """Write the newest releases that pyproject.toml allows into constraints.txt."""
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder))
        install(python, list(BACKEND))
        install(python, ["--no-build-isolation", "--editable", ".[dev]"])
        freeze = [str(python), "-m", "pip", "freeze", "--exclude-editable"]
        pins = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    CONSTRAINTS.write_text(HEADER + pins)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--refresh", action="store_true", help="write constraints.txt instead")
    check_python()
    if parser.parse_args().refresh:
        refresh()
    else:
        set_up()
