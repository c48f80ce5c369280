"""`events list` and `events replay` as processes on a real database."""

import json

import pytest

from billing.v1 import stripe_event_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.programs.commands.terminal import environment, refusal, run
from tests.billing_svc.service import Billing


@pytest.fixture(name="env")
async def received(billing: Billing, database_url: str) -> dict[str, str]:
    """What a command is told, for a database with an event that waits and one that is ignored."""
    for event_id, type_ in (("evt_1", "invoice.paid"), ("evt_2", "payout.paid")):
        event = {"id": event_id, "type": type_, "created": 1, "data": {"object": {"id": "in_1"}}}
        await billing.events.AcceptStripeEvent(
            stripe_event_pb2.AcceptStripeEventRequest(payload=json.dumps(event).encode())
        )
    return environment(DATABASE_URL=database_url)


def ids(env: dict[str, str], *filters: str) -> list[str]:
    shown = run("events", "list", "--json", *filters, env=env)
    assert shown.returncode == 0, shown.stderr
    return [event["event_id"] for event in json.loads(shown.stdout)["events"]]


def test_the_inbox_is_shown_for_people_and_for_programs(env: dict[str, str]) -> None:
    shown = run("events", "list", env=env)
    assert shown.returncode == 0, shown.stderr
    for text in ("evt_1", "invoice.paid", "waiting", "in_1", "this type changes nothing here"):
        assert text in shown.stdout
    assert ids(env) == ["evt_2", "evt_1"]
    assert ids(env, "--state", "ignored") == ["evt_2"]
    assert ids(env, "--type", "invoice.paid", "--object", "in_1") == ["evt_1"]
    assert ids(env, "--since", "2020-01-01", "--before", "2020-01-02") == []
    assert "none" in run("events", "list", "--account", "nobody", env=env).stdout
    assert run("events", "list", "--since", "yesterday", env=env).returncode == 2
    assert run("events", "list", "--state", "lost", env=env).returncode == 2


async def test_events_are_replayed_under_audit(env: dict[str, str], billing: Billing) -> None:
    shown = run("events", "replay", "--state", "ignored", "--preview", env=env)
    assert "1 events would wait to be applied again" in shown.stdout
    assert ids(env, "--state", "ignored") == ["evt_2"]
    told = json.loads(run("events", "replay", "evt_2", "--json", env=env).stdout)
    assert told == {"replayed": 1, "more": False}
    assert ids(env, "--state", "waiting") == ["evt_2", "evt_1"]
    async with billing.engine.connect() as conn:
        rows = list(await conn.execute(tables.audit_log.select()))
    assert [row.action for row in rows] == ["replay_stripe_events"]
    assert rows[0].actor.startswith("operator:")


def test_a_replay_of_nothing_or_of_the_unknown_is_a_sentence(env: dict[str, str]) -> None:
    assert "name events, or give" in refusal("events", "replay", env=env)
    assert "name events, or give" in refusal("events", "replay", "evt_1", "--state", "failed", env=env)
    assert "there is no event 'evt_none'" in refusal("events", "replay", "evt_none", env=env)
