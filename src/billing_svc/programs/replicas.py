"""`serve --workers N`: server processes that share one port, and the parent that restarts them."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping

import structlog

from billing_svc.platform import processes
from billing_svc.platform.monitoring import http_port, worker_metrics
from billing_svc.platform.settings import Settings
from billing_svc.programs import server
from billing_svc.programs.commands import common
from billing_svc.programs.supervision import children, deaths

# A worker needs its drain time to stop; if it still runs this much later, it hangs and is killed.
_STOP_SPARE_SECONDS = 5.0

_log = structlog.get_logger("workers")


async def run(settings: Settings, count: int) -> None:
    """Keep `count` servers on the port of `settings.listen` until SIGTERM or SIGINT, then drain them all.

    Raises Refusal if the port cannot be used, or if a worker dies too often.
    """
    stop = processes.stop_event()
    stop_seconds_max = server.drain_seconds(settings) + _STOP_SPARE_SECONDS
    monitored = settings.monitoring_listen
    operators = worker_metrics.addresses(monitored, count) if monitored is not None else []
    with _held_port(settings.listen) as address:
        environment = {**os.environ, "BILLING_LISTEN": address}
        async with http_port.answering(monitored, worker_metrics.app(operators)):
            _log.info("supervising", address=address, workers=count)
            keepers = (
                _Worker(
                    n,
                    environment | ({"BILLING_MONITORING_LISTEN": operators[n]} if operators else {}),
                    stop_seconds_max,
                ).keep(stop)
                for n in range(count)
            )
            ends = await asyncio.gather(*keepers, return_exceptions=True)
    _log.info("stopped")
    for end in ends:
        if isinstance(end, BaseException):
            raise end


class _Worker:
    """A server that is kept running; its process changes at each restart."""

    def __init__(self, number: int, environment: Mapping[str, str], stop_seconds_max: float) -> None:
        self._number = number
        self._stop_seconds_max = stop_seconds_max
        self._environment = environment
        self._deaths = deaths.Deaths(f"worker {number}")

    async def keep(self, stop: asyncio.Event) -> None:
        """Run the server until `stop`, and restart it whenever it dies.

        Raises Refusal if it dies too often; before that it sets `stop`, so that the other workers stop.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                process = await self._start()
                ended = asyncio.create_task(process.wait())
                await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    await self._stop(process, ended)
                else:
                    how = children.ending(ended.result())
                    pause_seconds = self._deaths.add(how, ("(above)",))
                    _log.warning("worker_died", worker=self._number, pid=process.pid, how=how, pause=pause_seconds)
                    await asyncio.wait({stopping}, timeout=pause_seconds)
        finally:
            stop.set()
            await stopping

    async def _start(self) -> asyncio.subprocess.Process:
        # Must run in the main thread: Linux ends a child when the *thread* that started it ends.
        process = await asyncio.create_subprocess_exec(
            *children.tied(sys.executable, "-m", "billing_svc", "serve", "--shared-port"),
            stdin=asyncio.subprocess.DEVNULL,
            env=self._environment,
            # Ctrl-C in the terminal must not reach the workers directly; the parent stops them.
            start_new_session=True,
        )
        _log.info("worker_started", worker=self._number, pid=process.pid)
        return process

    async def _stop(self, process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait({ended}, timeout=self._stop_seconds_max)
        if not ended.done():
            _log.error("worker_killed", worker=self._number, pid=process.pid, after_seconds=self._stop_seconds_max)
            process.kill()
        await ended


@contextlib.contextmanager
def _held_port(listen: str) -> Iterator[str]:
    """Bind the port, so that only our workers can listen on it, and yield its address. Raises Refusal.

    This socket never listens, so it gets no connections. It keeps other programs from the port even if no worker runs.
    """
    if sys.platform != "linux":
        raise common.Refusal("--workers needs Linux, which spreads connections over the processes that share a port")
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, ValueError):
        raise common.Refusal(f"BILLING_LISTEN: {listen!r} is not host:port, which --workers needs") from None
    with socket.socket(family, kind) as held:
        # Without SO_REUSEPORT, binding fails if any program listens there, even if that program would share the port.
        # With SO_REUSEADDR, connections that ended lately do not make it fail.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(address)
        except OSError as error:
            raise common.Refusal(f"BILLING_LISTEN: cannot listen on {listen}: {error.strerror}") from None
        # From now on, sockets of the same user that ask to share the port can bind it: our workers do.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound: int = held.getsockname()[1]
        yield f"[{host}]:{bound}" if family == socket.AF_INET6 else f"{host}:{bound}"
