"""All programs as separate processes, as in production, with the sandbox as Stripe; tests kill them."""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from billing_svc.catalog import loading, versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import embedded, migrating, tables, transactions
from billing_svc.platform.database import engine as engines
from billing_svc.programs.dev import options, parts, programs
from billing_svc.programs.supervision import children
from billing_svc.reconciliation import findings, reconcile
from billing_svc.stripe import catalog_sync, client
from tests import ports
from tests.billing_svc.sandboxed import Sandbox
from tests.billing_svc.service import CATALOGS

ANSWER_SECONDS_MAX = 60.0
POLL_SECONDS = 0.1


@dataclass
class Process:
    """A program that a test kills and starts."""

    program: parts.Program
    log: Path
    child: children.Child | None = None
    ended: "asyncio.Task[int] | None" = None

    async def start(self) -> None:
        """Start it, without waiting for anything."""

        def write(line: str) -> None:
            with self.log.open("a") as log:
                log.write(f"{line}\n")

        program = self.program
        self.child = await children.Child.start(program.command, program.environment, write, program.announcement)
        self.ended = asyncio.create_task(self.child.wait())

    async def keep(self) -> None:
        """Start it again if it has ended by itself: a program ends at its start if it finds no Postgres."""
        if self.ended is not None and self.ended.done():
            await self.start()

    async def answering(self) -> None:
        """Wait until it answers."""
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            assert self.child is not None
            while not await self.program.answers(self.child):
                await self.keep()
                await asyncio.sleep(POLL_SECONDS)

    async def kill(self) -> None:
        """Kill it, and return when it is gone."""
        if self.child is not None and self.ended is not None:
            self.child.kill()
            await self.ended


@dataclass
class World:
    """Server, worker, gateway, sandbox and Postgres, with access to the last two."""

    postgres: embedded.EmbeddedPostgres
    ports: options.Ports
    folder: Path
    url: str
    sandbox: Sandbox
    programs: dict[str, Process]
    engine: AsyncEngine
    logs: list[Path] = field(default_factory=list)

    @property
    def clock(self) -> clock.Clock:
        return clock.SharedClock(self.folder / "clock")

    @contextlib.asynccontextmanager
    async def stripe(self) -> AsyncIterator[client.Stripe]:
        made = client.Stripe(options.SANDBOX_KEY, programs.sandbox_url(self.ports))
        yield made
        await made.close()

    async def publish(self, catalog_name: str) -> None:
        """Apply a catalog to Stripe, and publish it."""
        catalog = loading.load_file(CATALOGS / f"{catalog_name}.yaml")
        service = engines.create_engine(self.url)
        async with self.stripe() as stripe:
            database = transactions.Transactions(service)
            await catalog_sync.apply(database, stripe, catalog, "operator:test", self.clock, lambda _line: None)
        await service.dispose()

    async def rows(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        async with self.engine.connect() as conn:
            return (await conn.execute(sa.select(table).where(*where))).all()

    async def advance(self, seconds: int) -> None:
        """Advance the clock of all programs."""
        await self.sandbox.control(
            "POST", "clock/advance", {"seconds": seconds, "pause_seconds": 0.5, "delivery_seconds": 2}
        )

    async def is_quiet(self) -> bool:
        """Say whether the worker has nothing left to do, and Stripe has no event left to deliver."""
        # Stripe's deliveries first: after delivery an event is in the inbox.
        if (await self.sandbox.control("POST", "clock/step", {"seconds": 0}))["undelivered"]:
            return False
        counters, reports, events = tables.usage_counters.c, tables.usage_reports.c, tables.stripe_events.c
        return not (
            await self.rows(tables.usage_counters, counters.billable != counters.sealed)
            or await self.rows(tables.usage_reports, reports.state.in_(("sealed", "late", "itemised")))
            or await self.rows(tables.stripe_events, events.state == "waiting")
        )

    async def on_the_meter(self, event_name: str, customer: str) -> int:
        """Return the units that Stripe's meter has for a customer."""
        meter = next(one for one in await self.sandbox.all("/v1/billing/meters") if one["event_name"] == event_name)
        now = int(self.clock.now().timestamp())
        start, end = (now - 40 * 86400) // 60 * 60, (now + 40 * 86400) // 60 * 60
        path = f"/v1/billing/meters/{meter['id']}/event_summaries"
        found = await self.sandbox.call("GET", path, customer=customer, start_time=start, end_time=end)
        return int(sum(one["aggregated_value"] for one in found["data"]))

    async def drifts(self) -> list[findings.Finding]:
        """Compare with Stripe, as `billing-svc reconcile` does."""
        service = engines.create_engine(self.url)
        async with self.stripe() as stripe:
            database = transactions.Transactions(service)
            comparison = reconcile.Comparison(database, versions.CatalogCache(), stripe, self.clock)
            origin = audit_store.Origin("operator:test")
            found = await comparison.run(origin, reconcile.Scope(), reconcile.RunOptions())
        await service.dispose()
        return list(found.findings)


@contextlib.asynccontextmanager
async def running(postgres: embedded.EmbeddedPostgres, folder: Path, catalog_name: str) -> AsyncIterator[World]:
    """Run all programs, with a catalog published."""
    url = postgres.start()
    await asyncio.to_thread(migrating.upgrade, url)
    chosen = options.Ports(*(ports.free_port() for _ in range(3)))
    common = dict(programs.environment(chosen, url, folder, None))
    common["PYTHONPATH"] = str(CATALOGS.parent / "src")
    described = (
        programs.sandbox(chosen, folder, common),
        programs.server(chosen, common),
        programs.worker(common),
        programs.gateway(chosen, common),
    )
    started = {one.name: Process(one, folder / f"{one.name}.log") for one in described}
    http = httpx.AsyncClient(
        base_url=programs.sandbox_url(chosen),
        headers={"Authorization": f"Bearer {options.SANDBOX_KEY}"},
        trust_env=False,
        timeout=30,
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # empty: no TLS is used here
    )
    engine = engines.create_engine(url, role=None)
    world = World(postgres, chosen, folder, url, Sandbox(programs.sandbox_url(chosen), http), started, engine)
    try:
        await started["sandbox"].start()
        await started["sandbox"].answering()
        await world.publish(catalog_name)
        for name in ("server", "worker", "gateway"):
            await started[name].start()
        for process in started.values():
            await process.answering()
        yield world
    finally:
        for process in started.values():
            await process.kill()
        await http.aclose()
        await engine.dispose()


def draw_faults(rng: random.Random) -> list[dict[str, object]]:
    """Return the sandbox's faults: slow, refusing, silent after accepting; events late, twice, lost, reordered."""

    def rule(kind: str, probability: float, **more: object) -> dict[str, object]:
        return {"kind": kind, "probability": probability, "seed": rng.randrange(1 << 30), **more}

    api = "/v1/*"
    return [
        rule("delay", 0.2, path=api, seconds=rng.uniform(0.1, 1.5)),
        rule("rate_limited", 0.05, path=api),
        rule("conflict", 0.05, path=api, method="POST"),
        rule("unavailable", 0.05, path=api),
        rule("cut", 0.05, path=api),
        rule("broken", 0.1, path="/v1/billing/meter_events", does_it=rng.random() < 0.5),
        rule("lost_answer", 0.2, path="/v1/billing/meter_events", seconds=0.5),
        rule("webhook_duplicate", 0.3),
        rule("webhook_reorder", 0.3, seconds=2.0),
        rule("webhook_drop", 0.2),
    ]
