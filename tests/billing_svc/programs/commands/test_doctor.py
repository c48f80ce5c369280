"""`doctor` as a process: what it finds, and what it says to do."""

import asyncio
import json
import secrets
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from billing_svc.platform.database import tables
from tests.billing_svc.programs.commands import terminal
from tests.billing_svc.sandboxed import World


@pytest.fixture(name="env")
def complete_environment(world: World, database_url: str) -> dict[str, str]:
    return terminal.complete(database_url) | {"STRIPE_API_BASE": world.sandbox.url, "STRIPE_API_KEY": "sk_test_tests"}


async def checked(env: dict[str, str], **more: str) -> tuple[int, dict[str, dict[str, Any]]]:
    ended = await asyncio.to_thread(terminal.run, "doctor", "--json", env=env | more)
    return ended.returncode, {one["name"]: one for one in json.loads(ended.stdout)["checks"]}


async def test_where_all_is_well_doctor_says_so(env: dict[str, str]) -> None:
    code, checks = await checked(env)
    assert {one["state"] for one in checks.values()} == {"ok"}, checks
    assert code == 0
    expected = {
        "settings",
        "callers",
        "schema",
        "catalog",
        "Stripe",
        "catalog at Stripe",
        "readers",
        "stripe events",
        "usage reports",
    }
    assert expected | {"clock against Postgres", "clock against Stripe", "webhook secret"} <= checks.keys()
    shown = await asyncio.to_thread(terminal.run, "doctor", env=env)
    assert (shown.returncode, "catalog at Stripe" in shown.stdout) == (0, True)


async def test_what_a_reader_could_do_beside_reading_is_told(env: dict[str, str], engine: AsyncEngine) -> None:
    name = f"reader_{secrets.token_hex(4)}"
    async with engine.begin() as conn:
        await conn.execute(sa.text(f"CREATE ROLE {name} IN ROLE billing_reader"))
    try:
        _, checks = await checked(env)
        assert (checks["readers"]["state"], checks["readers"]["told"][:1].isdigit()) == ("ok", True)
        async with engine.begin() as conn:
            await conn.execute(sa.text("GRANT USAGE ON SCHEMA public TO PUBLIC"))
        code, checks = await checked(env)
        assert (code, checks["readers"]["state"]) == (1, "wrong")
        assert "REVOKE USAGE ON SCHEMA public" in checks["readers"]["remedy"]
    finally:
        async with engine.begin() as conn:
            await conn.execute(sa.text(f"DROP ROLE {name}"))


@pytest.mark.parametrize(
    ("variable", "value", "name", "remedy"),
    [
        ("STRIPE_WEBHOOK_SECRETS", "hunter2", "webhook secret", "whsec_"),
        ("STRIPE_API_BASE", "http://127.0.0.1:9", "Stripe", "STRIPE_API_KEY"),
        ("DATABASE_URL", "postgresql://billing:hunter2@127.0.0.1:9/billing", "database", "DATABASE_URL"),
        ("BILLING_CALLERS_FILE", "/nowhere", "callers", "BILLING_CALLERS_FILE"),
        ("STRIPE_API_KEY", "", "settings", "docs/settings.md"),
    ],
)
async def test_what_is_wrong_is_named_with_what_to_do(
    env: dict[str, str], variable: str, value: str, name: str, remedy: str
) -> None:
    code, checks = await checked(env, **{variable: value})
    assert code == 1
    assert checks[name]["state"] == "wrong"
    assert remedy in checks[name]["remedy"]
    assert "hunter2" not in json.dumps(checks)


async def test_an_old_schema_is_found(env: dict[str, str], empty_database_url: str) -> None:
    code, checks = await checked(env, DATABASE_URL=empty_database_url)
    assert code == 1
    assert "billing-svc migrate" in checks["schema"]["remedy"]


async def test_what_was_changed_at_stripe_is_found(env: dict[str, str], world: World) -> None:
    await world.sandbox.call("POST", "/v1/products/nyqst_pro", active="false")
    code, checks = await checked(env)
    assert (code, checks["catalog at Stripe"]["state"]) == (1, "wrong")
    assert "product nyqst_pro" in checks["catalog at Stripe"]["told"]


async def test_events_that_failed_are_a_warning(env: dict[str, str], world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    await world.execute(sa.update(tables.stripe_events).values(state="failed"))
    code, checks = await checked(env)
    assert (code, checks["stripe events"]["state"]) == (0, "warning"), checks
    assert "events replay" in checks["stripe events"]["remedy"]
