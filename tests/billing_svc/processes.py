"""Real server processes: what a crash, a second replica and a log are tested with."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from billing.v1 import quota_pb2_grpc, usage_pb2_grpc
from tests import ports

SRC = Path(__file__).parents[2] / "src"
TOKEN = "dev-token"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
# Of a server that a test stops by SIGTERM while it has connections: a stop waits for their age.
STOPS_SOON = {"BILLING_CONNECTION_AGE_SECONDS": "1"}
# A start takes one or two seconds; longer on a machine that does other things.
READY_SECONDS_MAX = 30

_ENTRY = """
import asyncio
from billing_svc.api import transport
transport.prepare()
from billing_svc.platform import logs, settings
from billing_svc.programs import server
read = settings.read()
logs.configure(read.log_level)
asyncio.run(server.serve(read))
"""


@dataclass(slots=True)
class ServerProcess:
    """One `serve`, on a port that it keeps across restarts."""

    database_url: str
    port: int
    log: Path
    more: Mapping[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    # How long the log was when it was last started.
    _began: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and return when it answers."""
        environment = os.environ | {
            "PYTHONPATH": str(SRC),
            "DATABASE_URL": self.database_url,
            "BILLING_DEV": "true",
            "BILLING_LISTEN": self.address,
            "STRIPE_API_KEY": "sk_test_tests",
            "STRIPE_API_BASE": "http://127.0.0.1:9",
            "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
            "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
            # Longer than any test, so that no connection is renewed in the midst of another matter.
            "BILLING_CONNECTION_AGE_SECONDS": "300",
            **self.more,
        }
        with self.log.open("ab") as log:
            self._began = log.tell()
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _ENTRY, env=environment, stdout=log, stderr=log
            )
        async with self.channel() as channel:
            ready = asyncio.ensure_future(channel.channel_ready())
            ended = asyncio.ensure_future(self.process.wait())
            await asyncio.wait({ready, ended}, timeout=READY_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not ready.done():
                ready.cancel()
                raise AssertionError(f"the server did not get ready:\n{self.log.read_text()}")

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """End it and return when it is gone."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.wait()

    def said(self) -> str:
        """Return what it has logged since its start."""
        with self.log.open("rb") as log:
            log.seek(self._began)
            return log.read().decode()

    def channel(self) -> grpc.aio.Channel:
        """Return a channel of its own connection, which comes back soon after a restart."""
        return grpc.aio.insecure_channel(
            self.address,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                # How long an attempt to connect may take.
                ("grpc.min_reconnect_backoff_ms", 5_000),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )


@contextlib.asynccontextmanager
async def servers(
    database_url: str, folder: Path, count: int, more: Mapping[str, str] | None = None
) -> AsyncIterator[list[ServerProcess]]:
    """Run server processes on one database, where a catalog was published; `more` are further settings."""
    started = [
        ServerProcess(database_url, ports.free_port(), folder / f"server_{n}.log", more or {}) for n in range(count)
    ]
    try:
        await asyncio.gather(*(one.start() for one in started))
        yield started
    finally:
        await asyncio.gather(*(one.kill() for one in started))


def usage_stub(channel: grpc.aio.Channel) -> "usage_pb2_grpc.UsageServiceAsyncStub":
    return usage_pb2_grpc.UsageServiceStub(channel)


def quota_stub(channel: grpc.aio.Channel) -> "quota_pb2_grpc.QuotaServiceAsyncStub":
    return quota_pb2_grpc.QuotaServiceStub(channel)
