"""Starts and stops the parts of `dev` in order."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from billing_svc.platform.database import embedded
from billing_svc.programs.commands import common
from billing_svc.programs.dev import folder, introduction, options, parts, programs, terminal
from billing_svc.programs.supervision import children

# SIGHUP: the terminal was closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(chosen: options.Options) -> None:
    """Run all parts until a signal comes. Raises Refusal if a part cannot be started or kept running."""
    # gRPC's core reads this variable at its first call.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    started = time.monotonic()
    with folder.claimed(chosen.data_dir) as path:
        ports = options.choose_ports(chosen.requested)
        refusals = asyncio.run(_run(chosen, path, ports, started))
    if refusals:
        raise refusals[0]


async def _run(chosen: options.Options, path: Path, ports: options.Ports, started: float) -> Sequence[common.Refusal]:
    stop = _Stop()
    out = terminal.standard(on_gone=stop.begin)
    stop.take_over_signals()
    refusals: list[common.Refusal] = []
    try:
        # Parts are stopped in the reverse order of their start.
        async with contextlib.AsyncExitStack() as running:
            try:
                async with asyncio.TaskGroup() as keepers:
                    await _Start(chosen, path, ports, out, stop, running, keepers).everything()
                    for line in introduction.lines(chosen, ports, path):
                        out.say(line)
                    out.say(f"ready after {time.monotonic() - started:.1f} s; Ctrl-C stops everything")
                    await asyncio.Event().wait()
            finally:
                # From here on no part is restarted.
                stop.has_begun = True
                out.say("stopping")
    except* asyncio.CancelledError:
        pass
    except* common.Refusal as group:
        refusals += [error for error in group.exceptions if isinstance(error, common.Refusal)]
    out.say("stopped")
    return refusals


class _Stop:
    """Handles stop signals: the first signal stops all parts in order, a second signal kills them."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - created in a coroutine
        self._task = task
        self.parts: list[parts.DevPart] = []
        self.has_begun = False

    def take_over_signals(self) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            self._task.cancel()

    def _on_signal(self) -> None:
        if not self.has_begun:
            self.begin()
            return
        for part in self.parts:
            part.kill()


@dataclass(frozen=True, slots=True)
class _Start:
    """The start of all parts, part by part."""

    chosen: options.Options
    path: Path
    ports: options.Ports
    out: terminal.Terminal
    stop: _Stop
    running: contextlib.AsyncExitStack
    keepers: asyncio.TaskGroup

    async def everything(self) -> None:
        """Start each part after the parts that it needs; return when every part answers."""
        if self.chosen.reset:
            with self.out.step("reset"):
                await asyncio.to_thread(folder.empty, self.path)
        folder.keep_to_one_stripe(self.path, programs.sandbox_state(self.path), sandbox=self.chosen.stripe is None)
        database_url = self.chosen.database_url or await self._start_postgres()
        environment = programs.environment(self.ports, database_url, self.path, self.chosen.stripe)
        folder.write_environment(self.path, programs.own(environment, self.chosen.stripe))
        sandbox = None if self.chosen.stripe else self._begin(programs.sandbox(self.ports, self.path, environment))
        await self._complete("migrate", programs.command("migrate"), environment)
        if sandbox is not None:
            await self._answering(sandbox)
        apply = programs.command("catalog", "apply", str(self.chosen.catalog_file))
        await self._complete("catalog", apply, environment)
        server = self._begin(programs.server(self.ports, environment))
        worker = self._begin(programs.worker(environment))
        await self._answering(server)
        # After the server: the gateway would log warnings while the server does not answer.
        gateway = self._begin(programs.gateway(self.ports, environment))
        await self._answering(worker)
        await self._answering(gateway)

    async def _start_postgres(self) -> str:
        postgres = parts.Postgres(self.path / "postgres", embedded.free_port(), self.out)
        self.running.push_async_callback(postgres.stop)
        with self.out.waiting("starting postgres ..."):
            url = await postgres.start()
        self.keepers.create_task(postgres.keep())
        return url

    def _begin(self, program: parts.Program) -> parts.DevPart:
        part = parts.DevPart(program, self.out)
        self.stop.parts.append(part)
        self.running.push_async_callback(part.stop)
        self.keepers.create_task(part.keep())
        return part

    async def _answering(self, part: parts.DevPart) -> None:
        with self.out.waiting(f"starting {part.name} ..."):
            await part.answering.wait()

    async def _complete(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run a command to its end."""
        with self.out.step(name):
            child = await children.Child.start(command, environment, lambda line: self.out.part(name, line))
            try:
                code = await child.wait()
            finally:
                await child.stop()
            if code != 0:
                raise common.Refusal(f"{name} {children.ending(code)}; see its lines above")
