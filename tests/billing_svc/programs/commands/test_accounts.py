"""`account show`, `usage show` and `audit` as processes on a real database."""

import json

import pytest

from billing.v1 import admin_pb2, usage_pb2
from tests import clocks
from tests.acceptance import accounts
from tests.billing_svc.programs.commands.terminal import environment, refusal, run
from tests.billing_svc.service import Billing


@pytest.fixture
def service_clock() -> clocks.StillClock:
    return clocks.StillClock(accounts.START)


@pytest.fixture(name="env")
async def recorded(billing: Billing, database_url: str) -> dict[str, str]:
    """What a command is told, for a database with one account that has used and been given something."""
    await billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org[1]", event_id="e1", meter="runs", quantity=4)
    )
    await billing.admin.SetOverride(
        admin_pb2.SetOverrideRequest(account_id="org[1]", meter="runs", included=9, note="a test", request_id="r1")
    )
    return environment(DATABASE_URL=database_url)


def test_an_account_is_shown_for_people_and_for_programs(env: dict[str, str]) -> None:
    shown = run("account", "show", "org[1]", env=env)
    assert shown.returncode == 0, shown.stderr
    for text in ("org[1]", "free (catalog version 1)", "runs", "a test"):
        assert text in shown.stdout
    told = json.loads(run("account", "show", "org[1]", "--json", env=env).stdout)
    assert told["account"]["account_id"] == "org[1]"
    assert [(one["meter"], one["included"]) for one in told["overrides"]] == [("runs", "9")]


def test_an_unknown_account_is_a_sentence(env: dict[str, str]) -> None:
    assert "there is no account 'nobody'" in refusal("account", "show", "nobody", env=env)


def test_usage_is_shown_of_the_present_and_of_a_past_period(env: dict[str, str]) -> None:
    told = json.loads(run("usage", "show", "org[1]", "--json", env=env).stdout)
    assert [one["used"] for one in told["meters"] if one["meter"] == "runs"]
    past = json.loads(run("usage", "show", "org[1]", "--at", "2026-05-12", "--json", env=env).stdout)
    assert past["period_start"] == "2026-05-01T00:00:00Z"
    assert [one["used"] for one in past["meters"] if one["meter"] == "runs"] == ["4"]
    assert run("usage", "show", "org[1]", "--at", "yesterday", env=env).returncode == 2
    assert "runs" in run("usage", "show", "org[1]", env=env).stdout


def test_the_audit_log_is_shown_and_filtered(env: dict[str, str]) -> None:
    shown = run("audit", env=env)
    assert shown.returncode == 0, shown.stderr
    assert "set_override" in shown.stdout
    for filters, found in (
        (("--account", "org[1]"), 1),
        (("--caller", "test", "--action", "set_override"), 1),
        (("--caller", "nobody"), 0),
        (("--since", "2026-05-01", "--before", "2027-01-01"), 1),
        (("--before", "2026-05-01"), 0),
    ):
        told = json.loads(run("audit", *filters, "--json", env=env).stdout)
        assert len([one for one in told["entries"] if one["action"] == "set_override"]) == found, filters
