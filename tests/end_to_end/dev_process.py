"""A separate `billing-svc dev`, which a test interrupts, kills and starts again."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests import ports

ROOT = Path(__file__).resolve().parents[2]
# Ten times as long as a start takes on an idle machine.
READY_SECONDS_MAX = 45
# Five parts, each with a grace of five seconds, if all of them hang.
END_SECONDS_MAX = 30
# On Linux the orphans end immediately; Postgres needs a moment for its own children.
ORPHANS_SECONDS_MAX = 8
POLL_SECONDS = 0.05
# Positions in /proc/PID/stat, after the process's name.
_STATE, _PARENT, _STARTED = 0, 1, 19


class DevProcess:
    """A folder and a set of ports; the test may start it several times."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.ports = [ports.free_port() for _ in range(3)]
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self._seen: set[tuple[int, str]] = set()
        self._changed = threading.Condition()

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def database(self) -> str:
        """Return the URL of its embedded Postgres, which `dev` does not print."""
        folder = self.data_dir / "postgres"
        port = (folder / "cluster" / "postmaster.pid").read_text().splitlines()[3]
        password = (folder / "password").read_text()
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1", port=port, user="billing", password=password, dbname="billing"
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self, *more: str) -> list[str]:
        options = zip(("--grpc-port", "--gateway-port", "--sandbox-port"), map(str, self.ports), strict=True)
        own = (part for option in options for part in option)
        return [sys.executable, "-m", "billing_svc", "dev", "--data-dir", str(self.data_dir), *own, *more]

    def start(self) -> None:
        """Start it, without waiting for anything."""
        self.lines = []
        self.process = subprocess.Popen(
            self.command(), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        # A new list: the lines of an earlier process must not count for this process.
        threading.Thread(target=self._drain, args=(self.process, self.lines), daemon=True).start()

    def await_line(self, pattern: str, seconds: float = READY_SECONDS_MAX) -> "re.Match[str]":
        """Return the first match at a line's beginning; fails if there is none in time."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for line in self.lines:
                    if matched := re.match(pattern, line):
                        return matched
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no line like {pattern!r} within {seconds} s:\n" + "".join(self.lines))

    def await_ready(self) -> None:
        self.await_line("ready ")

    def end(self, number: int) -> int:
        """Send a signal and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS_MAX)

    def parts(self) -> list[int]:
        """Return all processes below it, and remember them for the end of the test."""
        found = descendants(self.pid)
        self._seen |= {(pid, fields[_STARTED]) for pid in found if (fields := _stat(pid))}
        return found

    def clean_up(self) -> None:
        """End it and every part of it that was ever found, also if the test failed."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.parts()
            self.process.kill()
            self.process.wait()
        # The start time tells a part from another process that got its id.
        left = [pid for pid, started in self._seen if (fields := _stat(pid)) and fields[_STARTED] == started]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
        await_gone(left)

    def pid_of(self, part: str) -> int:
        """Return the process id of a part's last start."""
        found = [re.match(rf"  {part} answers after .* \(process (\d+)\)", line) for line in self.lines]
        return int([matched for matched in found if matched][-1][1])

    def _drain(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._changed:
                    lines.append(line)
                    self._changed.notify_all()


def environment(**more: str) -> dict[str, str]:
    """Return an environment without PATH and the service's variables, but for the transport that the run is for."""
    foreign = ("BILLING_", "DATABASE_URL", "GATEWAY_", "STRIPE_", "PATH")
    kept = {
        key: value for key, value in os.environ.items() if key == "BILLING_TRANSPORT" or not key.startswith(foreign)
    }
    return kept | {"PYTHONPATH": str(ROOT / "src")} | more


@contextlib.contextmanager
def ended_in_any_case(dev: DevProcess) -> Iterator[DevProcess]:
    """End everything that a failed test has left running."""
    try:
        yield dev
    finally:
        dev.clean_up()


def descendants(pid: int) -> list[int]:
    """Return all processes below a process."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            parents.setdefault(int(fields[_PARENT]), []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def await_gone(pids: list[int], seconds: float = ORPHANS_SECONDS_MAX) -> None:
    """Wait until no process is left; a zombie, which its parent has not waited for yet, counts as gone."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if (fields := _stat(pid)) and fields[_STATE] != "Z"]:
        assert time.monotonic() < deadline, f"still running: {[_command_of(pid) for pid in left]}"
        time.sleep(POLL_SECONDS)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _stat(pid: int) -> list[str] | None:
    """Return a process's state, parent and so on; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return str(pid)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
