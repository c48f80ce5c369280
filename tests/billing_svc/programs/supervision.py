"""`serve --workers 2` as a process of its own."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from tests import ports
from tests.billing_svc import processes

# On a machine that does other things too.
SECONDS_MAX = 60
POLL_SECONDS = 0.05


@dataclass(slots=True)
class Supervised:
    """A running `serve --workers 2`."""

    process: asyncio.subprocess.Process
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """The process ids of all workers that were started, in order."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry["pid"] for entry in entries if entry["event"] == "worker_started"]

    async def ended(self) -> int:
        async with asyncio.timeout(SECONDS_MAX):
            return await self.process.wait()


async def start(database_url: str, port: int, log: Path) -> Supervised:
    environment = os.environ | {
        "PYTHONPATH": str(processes.SRC),
        "DATABASE_URL": database_url,
        "BILLING_DEV": "1",
        "BILLING_LISTEN": f"127.0.0.1:{port}",
        # A stop waits for it.
        "BILLING_CONNECTION_AGE_SECONDS": "1",
        "STRIPE_API_KEY": "sk_test_tests",
        "STRIPE_API_BASE": "http://127.0.0.1:9",
        "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
        "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "billing_svc", "serve", "--workers", "2"), env=environment, stderr=output
        )
    return Supervised(process, port, log)


@contextlib.asynccontextmanager
async def supervising(database_url: str, log: Path) -> AsyncIterator[Supervised]:
    """Run one whose workers both answer."""
    running = await start(database_url, ports.free_port(), log)
    try:
        await until(lambda: running.log.read_text().count('"serving"') == 2)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.process.kill()
        await running.process.wait()
        await until(lambda: not any(map(is_alive, running.workers())))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(POLL_SECONDS)


def is_alive(pid: int) -> bool:
    try:
        # The third field; a zombie has ended, whoever is to collect it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
