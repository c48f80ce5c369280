"""A program of the embedded PostgreSQL, as a child of this process."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from billing_svc.platform.database import embedded_launcher

# A fast shutdown writes one checkpoint.
_FAST_SHUTDOWN_SECONDS_MAX = 10.0
_IMMEDIATE_SHUTDOWN_SECONDS_MAX = 5.0


class EmbeddedPostgresError(Exception):
    """The embedded server cannot run; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """Who the server's programs run as; the launcher's `UNCHANGED` where nothing changes."""

    user_id: int = embedded_launcher.UNCHANGED
    group_id: int = embedded_launcher.UNCHANGED
    capability: int = embedded_launcher.UNCHANGED


class Child:
    """A program that runs until it ends or is ended.

    The thread that starts it waits for it: Linux tells a child of its parent's death when the parent's *thread* ends.
    """

    def __init__(self, program: Path, arguments: list[str], run_as: RunAs, log_file: Path) -> None:
        """Start it, its output going to `log_file`, which begins anew."""
        self._ended = threading.Event()
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        command = [
            sys.executable,
            "-I",  # no environment, no current folder, no site-packages: the standard library alone
            "-S",
            str(Path(embedded_launcher.__file__).resolve()),
            str(os.getpid()),
            str(run_as.user_id),
            str(run_as.group_id),
            str(run_as.capability),
            str(program),
            *arguments,
        ]
        threading.Thread(
            target=self._run, args=(command, log_file), name=f"keeper of {program.name}", daemon=True
        ).start()
        self._started.wait()
        if self._process is None:
            raise EmbeddedPostgresError(f"{program.name} cannot be started: {self._error}")
        self.pid: int = self._process.pid

    def _run(self, command: list[str], log_file: Path) -> None:
        try:
            with log_file.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own launcher
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Nothing of ours: PG* variables and locales would change what it does.
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                    cwd="/",
                    # Ctrl-C in the terminal is for us; we end it when we are done with it.
                    start_new_session=True,
                )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self._ended.set()

    @property
    def returncode(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.returncode if self._process else None

    def wait(self, seconds: float) -> bool:
        """Wait for its end, and tell whether it has ended."""
        return self._ended.wait(seconds)

    def end(self) -> None:
        """End it, if it still runs: SIGINT (Postgres' fast shutdown), SIGQUIT (at once), SIGKILL."""
        assert self._process is not None  # noqa: S101 - or __init__ had raised
        for number, seconds in (
            (signal.SIGINT, _FAST_SHUTDOWN_SECONDS_MAX),
            (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_SECONDS_MAX),
        ):
            self._process.send_signal(number)
            if self.wait(seconds):
                return
        self._process.kill()
        self._ended.wait()
