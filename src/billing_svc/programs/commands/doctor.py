"""`doctor`: checks everything that the service needs, and tells what to do if a check fails."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from billing_svc.platform.database.transactions import Transactions
    from billing_svc.platform.settings import Settings
    from billing_svc.stripe.client import Stripe

# Signatures and quota periods tolerate far larger differences of clocks.
_CLOCKS_APART_MAX = timedelta(seconds=30)
# A row that waits longer than this is probably stuck.
_LAG_MAX = timedelta(minutes=10)

State: TypeAlias = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check, and what to do if it failed."""

    name: str
    state: State
    told: str
    remedy: str = ""


def doctor(*, as_json: common.AsJson = False) -> None:
    """Check settings, database, Stripe, clock and catalog, and say what to do; exit status 1 if something is wrong."""
    checks = common.run(_all())
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(one) for one in checks]}, indent=2))
    else:
        common.table(
            "what was checked",
            ("check", "", "found", "what to do"),
            [(c.name, c.state, c.told, c.remedy) for c in checks],
        )
    if any(one.state == "wrong" for one in checks):
        raise typer.Exit(1)


async def _all() -> list[Check]:
    from billing_svc.api import callers
    from billing_svc.platform import logs, settings
    from billing_svc.platform.database import engine, transactions
    from billing_svc.stripe import client

    try:
        options = settings.read()
        url = common.database_url(options)
    except settings.SettingsError as error:
        return [Check("settings", "wrong", str(error), "set the named variables; docs/settings.md lists all")]
    logs.configure("error", dev=options.dev)
    checks = [Check("settings", "ok", "complete")]
    try:
        callers.read(options)
        checks.append(Check("callers", "ok", "readable"))
    except settings.SettingsError as error:
        checks.append(Check("callers", "wrong", str(error), "correct BILLING_CALLERS_FILE"))
    checks.append(_webhook_secret())
    pool = engine.create_engine(url, pool_size=1)
    stripe = client.Stripe.from_settings(options)
    try:
        database = transactions.Transactions(pool)
        checks += [one async for one in _database(database, url)]
        checks += [one async for one in _stripe(stripe, options)]
        if all(one.state != "wrong" for one in checks):
            checks += [one async for one in _work(database, stripe)]
    finally:
        await stripe.close()
        await pool.dispose()
    return checks


def _webhook_secret() -> Check:
    """Check the gateway's secret, if it is set for this command."""
    name = "webhook secret"
    secrets = os.environ.get("STRIPE_WEBHOOK_SECRETS")
    if secrets is None:
        return Check(name, "ok", "not set here; the gateway refuses to start without it")
    if all(one.strip().startswith("whsec_") for one in secrets.split(",")):
        return Check(name, "ok", "has the form of a signing secret")
    remedy = "copy the endpoint's signing secret (whsec_...) into STRIPE_WEBHOOK_SECRETS"
    return Check(name, "wrong", "is not a signing secret of Stripe", remedy)


async def _database(database: "Transactions", url: str) -> AsyncIterator[Check]:
    import asyncio

    import sqlalchemy as sa

    from billing_svc.catalog import versions
    from billing_svc.platform import clock, errors
    from billing_svc.platform.database import migrating

    try:
        is_current = await asyncio.to_thread(migrating.is_current, url)
    except sa.exc.OperationalError as error:
        told = str(error.orig).splitlines()[0]
        yield Check("database", "wrong", told, "check that Postgres runs, and that DATABASE_URL is its address")
        return
    if not is_current:
        yield Check("schema", "wrong", "is older than this version", "run `billing-svc migrate`")
        return
    yield Check("schema", "ok", "is of this version, or newer")
    try:
        at = await database.read(lambda conn: conn.scalar(sa.text("SELECT clock_timestamp()")))
    except errors.Unavailable:
        remedy = "GRANT billing_service to this login, or let `billing-svc migrate` do it as the owner"
        yield Check("database", "wrong", "this login may not act as billing_service", remedy)
        return
    yield _clock("clock against Postgres", at - clock.Clock().now())
    yield await _readers(database)
    version = await database.read(versions.newest)
    if version is None:
        yield Check("catalog", "wrong", "no catalog was ever published", "run `billing-svc catalog apply FILE`")
    else:
        yield Check("catalog", "ok", f"version {version} is in force")


async def _readers(database: "Transactions") -> Check:
    """Check that logins which read the database directly have no further privileges."""
    import sqlalchemy as sa

    from billing_svc.platform.database import privileges

    name = "readers"
    left = (await database.read(lambda conn: conn.execute(sa.text(privileges.LEFT_TO_READERS)))).one()
    if not left.logins:
        return Check(name, "ok", "no login is in billing_reader")
    if left.names_tables:
        remedy = "as the schema's owner: REVOKE USAGE ON SCHEMA public FROM PUBLIC"
        return Check(name, "wrong", "can see the planner's estimates about other accounts", remedy)
    if left.writes_or_watches:
        remedy = "run `billing-svc migrate` as a superuser, or accept it; see docs/operations.md"
        return Check(name, "warning", "can store large objects, and see the size of all accounts' data", remedy)
    return Check(name, "ok", f"{left.logins} logins see their accounts only")


async def _stripe(stripe: "Stripe", options: "Settings") -> AsyncIterator[Check]:
    from billing_svc.platform import clock, errors

    mode = "live: real money" if options.livemode else "test"
    where = f", at {options.stripe_api_base}" if options.stripe_api_base else ""
    try:
        at = await stripe.server_time()
    except (errors.StripeUnavailable, errors.StripeRefused) as error:
        yield Check("Stripe", "wrong", error.message, "check STRIPE_API_KEY, the network, and Stripe's status page")
        return
    yield Check("Stripe", "ok", f"accepts the key ({mode}{where})")
    if at is not None:
        yield _clock("clock against Stripe", at - clock.Clock().now())


def _clock(name: str, apart: timedelta) -> Check:
    if abs(apart) <= _CLOCKS_APART_MAX:
        return Check(name, "ok", "agree")
    return Check(name, "wrong", f"{apart.total_seconds():+.0f} s apart", "set this machine's clock by NTP")


async def _work(database: "Transactions", stripe: "Stripe") -> AsyncIterator[Check]:
    from billing_svc.catalog import versions
    from billing_svc.platform import clock
    from billing_svc.platform.findings import store as findings_store
    from billing_svc.platform.monitoring import store
    from billing_svc.stripe import catalog_sync

    version = await database.read(versions.newest)
    if version is not None:
        catalog = await database.read(lambda conn: versions.load(conn, version))
        _, differences = await catalog_sync.compare(stripe, catalog)
        names = ", ".join(f"{one.kind} {one.key}" for one in differences)
        remedy = "see `billing-svc catalog plan FILE`, then `catalog apply FILE`"
        yield (
            Check("catalog at Stripe", "wrong", f"differs: {names}", remedy)
            if differences
            else Check("catalog at Stripe", "ok", "all its objects exist")
        )
    now = clock.Clock().now()
    findings = await database.read(findings_store.list_open)
    yield (
        Check(
            "findings", "warning", f"{len(findings)} open", "see `billing-svc findings list`; each says what settles it"
        )
        if findings
        else Check("findings", "ok", "none open")
    )
    for backlog in await database.read(store.backlogs):
        name = backlog.queue.replace("_", " ")
        if backlog.failed:
            remedy = {
                "stripe_events": "see `billing-svc events list --state failed`, repair the cause, `events replay`",
                "usage_reports": "repair the cause at Stripe, then `billing-svc reconcile --fix`",
            }.get(backlog.queue, "see the worker's log")
            yield Check(name, "warning", f"{backlog.failed} given up", remedy)
        elif backlog.lag_seconds(now) > _LAG_MAX.total_seconds():
            told = f"{backlog.waiting} wait, the oldest for {timedelta(seconds=int(backlog.lag_seconds(now)))}"
            yield Check(name, "warning", told, "check that a `billing-svc worker` runs, and that Stripe answers")
        else:
            yield Check(name, "ok", f"{backlog.waiting} wait")
