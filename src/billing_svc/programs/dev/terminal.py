"""The output of `dev`: its own lines, and the parts' lines after their names; on a terminal in colour."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

_COLOURS = {
    "postgres": "blue",
    "sandbox": "magenta",
    "migrate": "blue",
    "catalog": "blue",
    "server": "green",
    "worker": "yellow",
    "gateway": "cyan",
}
_NAME_WIDTH = max(map(len, _COLOURS))
# The position of the time of day in an ISO time.
_CLOCK = slice(11, 19)


class Terminal:
    """Writes each line at once. When the output is closed, it calls `on_gone` once."""

    def __init__(self, file: TextIO, on_gone: Callable[[], None]) -> None:
        """`on_gone` is called when the reader of the output has gone."""
        self._file = file
        self._on_gone = on_gone
        self._console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._is_terminal = self._console.is_terminal
        # This spinner's characters exist in every encoding.
        self._status = Status("", console=self._console, spinner="line")
        self._under_way: list[str] = []
        self._gone = False

    def say(self, line: str, style: str = "") -> None:
        """Write a line of `dev` itself."""
        self._write(Text(line, style))

    def answers(self, name: str, pid: int | None, seconds: float) -> None:
        """Write that a part answers, and how long its start took."""
        self.say(f"  {name} answers after {seconds:.1f} s (process {pid})")

    def part(self, name: str, line: str) -> None:
        """Write a line of a part's output."""
        prefix = f"{name:<{_NAME_WIDTH}} | "
        if self._is_terminal:
            self._write(Text.assemble((prefix, _COLOURS.get(name, "")), _readable(line)))
        else:
            self._write(Text(prefix + line))

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Show that a step is under way, then that it is done and how long it took."""
        started = time.monotonic()
        with self.waiting(f"{what} ..."):
            yield
        self.say(f"  {what} done after {time.monotonic() - started:.1f} s")

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """On a terminal, show a status text during the context."""
        self._under_way.append(what)
        self._show_status()
        try:
            yield
        finally:
            self._under_way.remove(what)
            self._show_status()

    def _show_status(self) -> None:
        if not self._is_terminal or self._gone:
            return
        if self._under_way:
            self._status.update(", ".join(self._under_way))
            self._status.start()
        else:
            self._status.stop()

    def _write(self, text: Text) -> None:
        if self._gone:
            return
        try:
            if self._is_terminal:
                self._console.print(text)
            else:
                self._file.write(f"{text.plain}\n")
                self._file.flush()
        except OSError:
            self._gone = True
            # Replaced by /dev/null, so that flushing the buffer at exit does not fail again.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)
            self._on_gone()


def standard(on_gone: Callable[[], None]) -> Terminal:
    """Return the terminal on stdout; characters that stdout's encoding lacks are replaced."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    return Terminal(sys.stdout, on_gone)


def _readable(line: str) -> Text:
    """Return a JSON log entry as readable text; any other line unchanged."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or "event" not in entry:
        return Text(line)
    level = str(entry.pop("level", ""))
    moment = str(entry.pop("timestamp", ""))[_CLOCK]
    logger, event = entry.pop("logger", ""), entry.pop("event")
    raised = entry.pop("exception", None)
    values = " ".join(f"{key}={value}" for key, value in entry.items() if value not in {None, ""})
    text = Text.assemble(
        (moment, "dim"), " ", (f"{level:<7}", _level_style(level)), f" {logger}: {event}", (f"  {values}", "dim")
    )
    for stack in raised if isinstance(raised, list) else ():
        text.append(f"\n    {stack.get('exc_type')}: {stack.get('exc_value')}", "red")
        for frame in stack.get("frames", ()):
            text.append(f"\n      {frame.get('filename')}:{frame.get('lineno')} in {frame.get('name')}", "dim")
    if isinstance(raised, str):
        text.append(f"\n{raised}", "red")
    return text


def _level_style(level: str) -> str:
    return {"warning": "yellow", "error": "bold red", "critical": "bold red"}.get(level, "")
