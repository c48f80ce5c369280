"""The processes under test: starts them, measures them from outside, and ends them with this process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]  # ships without type hints

from billing_svc.platform.database import embedded
from billing_svc.programs.supervision import launcher

ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS_MAX = 30.0
_STOP_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.05


def environment(**added: str) -> dict[str, str]:
    """Return the environment for our processes, without any of the service's variables from outside."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BILLING_", "DATABASE_URL", "STRIPE_", "PG"))
    }
    return {**kept, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))), "GRPC_VERBOSITY": "NONE", **added}


def spawn(
    arguments: list[str], env: Mapping[str, str], log_file: Path, *, piped: bool = False
) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS`, with its errors written to a file; on Linux it ends when this process ends."""
    pipe = subprocess.PIPE if piped else subprocess.DEVNULL
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), sys.executable, *arguments],
            stdin=pipe,
            stdout=pipe,
            stderr=log,
            env=env,
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children, including children that have ended and were waited for."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it has ended: the next call finds its time in the parent's account
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_cpu_seconds() -> float:
    """Return the CPU time of all processes of the machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


class Server:
    """A server process on its own port."""

    def __init__(self, name: str, arguments: list[str], env: Mapping[str, str], folder: Path) -> None:
        """`{address}` in the arguments and the environment is replaced by the server's address."""
        self.name = name
        self.port = embedded.free_port()
        self.calls = 0
        self._log = folder / f"{name}.log"
        filled = [argument.replace("{address}", self.address) for argument in arguments]
        env = {key: value.replace("{address}", self.address) for key, value in env.items()}
        self._process = spawn(filled, env, self._log)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _START_SECONDS_MAX
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise SystemExit(f"{self.name} did not start:\n{self._log.read_text()[-2000:]}") from None
                time.sleep(_POLL_SECONDS)
            else:
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The address that it listens on."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used so far."""
        return cpu_seconds(self.pid)

    def resident_mb(self) -> float:
        """Return its resident memory, in MB (10^6 bytes)."""
        return float(psutil.Process(self.pid).memory_info().rss / 1e6)

    def stop(self) -> None:
        """End it; kill it if it does not drain."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
