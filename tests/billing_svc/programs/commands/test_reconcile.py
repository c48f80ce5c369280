"""`billing-svc reconcile` as people and schedules run it: its table, its exit statuses, its questions."""

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from billing.v1 import subscription_pb2, usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.programs.commands import terminal
from tests.billing_svc.sandboxed import World


@pytest.fixture
def catalog_name() -> str:
    return "nyqst"


@pytest.fixture
def env(world: World, database_url: str) -> dict[str, str]:
    return terminal.complete(database_url) | {"STRIPE_API_BASE": world.sandbox.url, "STRIPE_API_KEY": "sk_test_tests"}


@pytest.fixture
async def buyer(world: World) -> str:
    """Return the subscription of org_1."""
    await world.subscribe("org_1")
    await world.deliver_new()
    (row,) = await world.rows(tables.subscriptions)
    return str(row.subscription_id)


async def run(env: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    ended = await asyncio.to_thread(terminal.run, *arguments, env=env)
    return ended.returncode, ended.stdout, ended.stderr


async def reconcile(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    code, shown, _ = await run(env, "reconcile", *arguments)
    return code, shown


async def use(world: World, units: int) -> None:
    await world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="e1", meter="runs", quantity=units)
    )


async def test_it_shows_a_table_an_exit_status_and_json(world: World, env: dict[str, str], buyer: str) -> None:
    assert await reconcile(env) == (0, "what differs from Stripe: nothing\n")
    await world.sandbox.call("POST", f"/v1/subscriptions/{buyer}", cancel_at_period_end="true")
    code, shown = await reconcile(env)
    assert code == 1
    assert buyer in shown
    code, shown = await reconcile(env, "--json")
    assert [one["account"] for one in json.loads(shown)["drift"]] == ["org_1"]
    code, shown = await reconcile(env, "--fix")
    assert code == 0
    assert "taken from Stripe: cancel_at_period_end" in shown
    assert (await reconcile(env))[0] == 0
    told = await world.subscription("org_1")
    assert told.status == subscription_pb2.STATUS_ACTIVE


async def test_it_says_how_many_reads_it_took(world: World, env: dict[str, str], buyer: str) -> None:
    before = len(await world.sandbox.requests("GET"))
    code, _, told = await run(env, "reconcile")
    reads = len(await world.sandbox.requests("GET")) - before
    assert code == 0
    assert f"with {reads} reads of Stripe" in told
    assert reads > 0
    assert buyer


async def test_it_charges_nothing_without_yes_where_nobody_can_be_asked(
    world: World, env: dict[str, str], buyer: str
) -> None:
    await use(world, 232)
    refusal = await asyncio.to_thread(lambda: terminal.refusal("reconcile", "--fix", env=env, code=2))
    assert "--fix would charge 16.00 usd: give --yes" in refusal
    assert await world.sandbox.requests("POST", "/v1/billing/meter_events") == []
    code, shown = await reconcile(env, "--fix", "--yes")
    assert code == 0
    assert "16.00 usd" in shown
    assert "32 units: sent to the meter" in shown
    assert len(await world.sandbox.requests("POST", "/v1/billing/meter_events")) == 1
    assert buyer


async def asked(env: dict[str, str], answer: str) -> tuple[int, str, str]:
    """Run `--fix` for somebody at a terminal, who answers its question."""
    keyboard, terminal_end = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "billing_svc", "reconcile", "--fix"),
        cwd=terminal.ROOT,
        env=env,
        stdin=terminal_end,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(terminal_end)
    os.write(keyboard, f"{answer}\n".encode())
    async with asyncio.timeout(terminal.SECONDS_MAX):
        shown, told = await process.communicate()
    os.close(keyboard)
    return process.returncode or 0, shown.decode(), told.decode()


async def test_it_asks_before_it_charges(world: World, env: dict[str, str], buyer: str) -> None:
    await use(world, 232)
    code, shown, told = await asked(env, "n")
    assert (code, "charge 16.00 usd?" in told) == (1, True)
    assert "what --fix would charge" in shown
    assert await world.sandbox.requests("POST", "/v1/billing/meter_events") == []
    code, shown, _ = await asked(env, "y")
    assert (code, "what was done" in shown) == (0, True)
    assert len(await world.sandbox.requests("POST", "/v1/billing/meter_events")) == 1
    assert buyer


async def test_a_dry_run_tells_what_fix_would_do_and_does_nothing(
    world: World, env: dict[str, str], buyer: str
) -> None:
    await use(world, 232)
    await world.sandbox.call("POST", f"/v1/subscriptions/{buyer}", cancel_at_period_end="true")
    writes = len(await world.sandbox.writes())
    code, shown = await reconcile(env, "--dry-run", "--fix")
    assert code == 1
    assert "--fix would take 1 objects from Stripe, and charge 16.00 usd" in shown
    assert len(await world.sandbox.writes()) == writes
    assert await world.rows(tables.findings) == []
    assert not (await world.subscription()).HasField("cancel_at")


async def test_what_it_finds_is_listed_until_it_is_settled(world: World, env: dict[str, str], buyer: str) -> None:
    await world.sandbox.call("POST", f"/v1/subscriptions/{buyer}", cancel_at_period_end="true")
    await reconcile(env)
    _, shown, _ = await run(env, "findings", "list", "--json")
    (found,) = json.loads(shown)["findings"]
    assert (found["kind"], found["account"], found["object"]) == ("subscription", "org_1", buyer)
    await reconcile(env, "--fix")
    assert json.loads((await run(env, "findings", "list", "--json"))[1]) == {"findings": []}


BROKEN: list[tuple[dict[str, str], str]] = [
    ({"DATABASE_URL": "postgresql://nobody:x@127.0.0.1:1/none"}, "the database cannot be used"),
    ({"STRIPE_API_BASE": "http://127.0.0.1:1"}, "Stripe cannot be reached"),
    ({"STRIPE_API_KEY": ""}, "STRIPE_API_KEY is not set"),
]


@pytest.mark.parametrize(("broken", "sentence"), BROKEN, ids=["database", "stripe", "settings"])
async def test_what_cannot_be_compared_is_not_taken_for_a_difference(
    env: dict[str, str], broken: dict[str, str], sentence: str
) -> None:
    told = await asyncio.to_thread(lambda: terminal.refusal("reconcile", env=env | broken, code=2))
    assert sentence in told


async def test_a_defect_is_not_taken_for_a_difference(world: World, env: dict[str, str], buyer: str) -> None:
    """A row names a catalog version that there is not; no code of ours writes that."""
    await use(world, 232)
    changed: Any = tables.usage_counters.update().values(catalog_version=99)
    await world.execute(changed)
    code, _, told = await run(env, "reconcile")
    assert code == 2, told
    assert "Traceback" in told
    assert buyer
