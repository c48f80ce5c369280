"""A program of the embedded PostgreSQL, as a child of this process."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from billing_svc.platform.database import embedded_launcher

# A fast shutdown writes a checkpoint.
_FAST_SHUTDOWN_SECONDS_MAX = 10.0
_IMMEDIATE_SHUTDOWN_SECONDS_MAX = 5.0


class EmbeddedPostgresError(Exception):
    """The embedded server cannot run; the message tells the user what to do."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that the server's programs run as; a field that is `UNCHANGED` changes nothing."""

    user_id: int = embedded_launcher.UNCHANGED
    group_id: int = embedded_launcher.UNCHANGED
    capability: int = embedded_launcher.UNCHANGED


class PostgresChild:
    """A program that runs until it exits or `end` is called.

    The thread that starts the program waits for its end: Linux signals a parent's death to a child when the *thread*
    that started the child ends.
    """

    def __init__(self, program: Path, arguments: list[str], run_as: RunAs, log_file: Path) -> None:
        """Start the program; its output goes to `log_file`, which is truncated first."""
        self._ended = threading.Event()
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        command = [
            sys.executable,
            "-I",  # no environment, no current folder, no site-packages: only the standard library
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
                    # Our environment is not passed on: PG* variables and locales would change the program's behaviour.
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                    cwd="/",
                    # Ctrl-C in the terminal must not reach the program; `end` stops it.
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
        """The exit status after the program's end; None before."""
        return self._process.returncode if self._process else None

    def wait(self, seconds: float) -> bool:
        """Wait for the program's end for at most `seconds`, and say whether it has ended."""
        return self._ended.wait(seconds)

    def end(self) -> None:
        """Stop the program if it runs: SIGINT (Postgres' fast shutdown), then SIGQUIT (immediate), then SIGKILL."""
        assert self._process is not None  # noqa: S101 - otherwise __init__ raised
        for number, seconds in (
            (signal.SIGINT, _FAST_SHUTDOWN_SECONDS_MAX),
            (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_SECONDS_MAX),
        ):
            self._process.send_signal(number)
            if self.wait(seconds):
                return
        self._process.kill()
        self._ended.wait()
