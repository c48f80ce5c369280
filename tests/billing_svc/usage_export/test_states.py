"""A report's states and transitions are those of ADR 0007, and the database refuses other transitions."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables, transactions
from billing_svc.platform.monitoring import store as monitoring_store
from billing_svc.usage_export import rules, states, store
from billing_svc.usage_export.states import ReportState, Transition

ADR = Path(__file__).resolve().parents[3] / "docs" / "adr" / "0007-usage-reaches-stripe-in-slices.md"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
BEFORE = NOW - timedelta(hours=1)

CHANGES = {
    Transition.RESEALED: states.resealed(NOW, "new"),
    Transition.RETRIED: states.retried(NOW, "new", None, BEFORE),
    Transition.SENT: states.sent(NOW),
    Transition.TOO_LATE: states.too_late(NOW, "why"),
    Transition.UNBILLED: states.unbilled(NOW, "why"),
    Transition.ITEMISED: states.itemised(NOW, 5, "ii_1"),
    Transition.UNINVOICED: states.uninvoiced(NOW),
    Transition.INVOICED: states.invoiced(NOW, 5, "ii_1"),
    Transition.INVOICED_ALONE: states.invoiced_alone(NOW),
    Transition.FAILED_ABSENT: states.failed_absent(NOW, "why"),
    Transition.FAILED_UNDECIDED: states.failed_undecided(NOW, "why"),
    Transition.FAILED_ITEM: states.failed_item(NOW, "why"),
    Transition.VOIDED: states.voided(NOW, to_units=0),
    Transition.WRITTEN_OFF: states.written_off(NOW, "why"),
}


def table_of_the_adr() -> dict[str, set[str]]:
    """Return the following states of each state, from the table in the decision record; `sealed` has two rows."""
    found: dict[str, set[str]] = {}
    for line in ADR.read_text().split("| state | means | goes to |\n")[1].split("\n\n")[0].splitlines()[1:]:
        state, _, goes_to = line.strip("|").split("|")
        (name,) = re.findall(r"`(\w+)`", state)
        found.setdefault(name, set()).update(re.findall(r"`(\w+)`", goes_to))
    return found


def test_the_transitions_are_those_of_the_decision() -> None:
    machine: dict[str, set[str]] = {state: set() for state in ReportState}
    for one in Transition:
        for source in one.sources:
            machine[source].add(one.target)
    assert machine == table_of_the_adr()


def test_every_transition_is_made_by_the_function_of_its_name() -> None:
    assert {one: change.transition for one, change in CHANGES.items()} == {one: one for one in Transition}
    assert [one.name for one in Transition if not callable(getattr(states, one.name.lower(), None))] == []


@pytest.mark.parametrize("one", Transition, ids=lambda one: one.name)
def test_what_is_open_is_due_and_what_is_closed_is_dated(one: Transition) -> None:
    columns = CHANGES[one].columns
    due_at, closed_at = (NOW, None) if one.target in states.OPEN else (None, NOW)
    assert (columns.get("next_attempt_at"), columns["closed_at"]) == (due_at, closed_at)


def test_an_attempt_is_forgotten_only_where_it_is_certain_not_to_have_arrived() -> None:
    forgetting = {one for one, change in CHANGES.items() if "first_attempt_at" in change.columns}
    assert forgetting == {Transition.RESEALED, Transition.FAILED_ABSENT}


def test_only_what_is_certain_not_to_be_at_stripe_gets_a_new_identifier() -> None:
    assert {one for one, change in CHANGES.items() if "identifier" in change.columns} == {
        Transition.RESEALED,
        Transition.RETRIED,
    }
    may_be_there = states.retried(NOW, "new", BEFORE, None)
    assert "identifier" not in may_be_there.columns
    assert may_be_there.columns["refused_at"] == NOW, "or it would be sent again instead of looked for"


def test_the_schema_and_the_backlog_know_the_same_states() -> None:
    checks = {
        str(one.name).rpartition("_")[2]: set(re.findall(r"'(\w+)'", str(one.sqltext)))
        for one in tables.usage_reports.constraints
        if isinstance(one, sa.CheckConstraint)
    }
    assert checks["state"] == set(ReportState)
    assert checks["closed"] == set(states.OPEN)
    assert checks["slice"] == {ReportState.VOID}
    backlog = str(monitoring_store._BACKLOGS).split("FROM usage_reports")[-1]  # noqa: SLF001 - a text for one plan
    assert set(re.findall(r"'(\w+)'", backlog.partition("UNION")[0])) == set(states.OPEN)


def stored(state: ReportState) -> rules.UsageReport:
    return rules.UsageReport(
        account_id="org_1",
        report_id="r1",
        meter="runs",
        period_start=BEFORE,
        slice=1,
        from_units=0,
        to_units=0 if state is ReportState.VOID else 60,
        plan="pro",
        catalog_version=1,
        subscription_id="sub_1",
        customer_id="cus_1",
        stripe_event_name="pro_runs",
        reported_for=BEFORE,
        period_end=NOW,
        identifier="old",
        state=state,
        attempts=1,
        next_attempt_at=BEFORE,
        first_attempt_at=BEFORE,
        last_attempt_at=BEFORE,
        refused_at=None,
        error=None,
        amount=5 if state in {ReportState.ITEMISED, ReportState.INVOICED} else None,
        invoice_item_id=None,
        sealed_at=BEFORE,
    )


async def insert(transactions: transactions.Transactions, report: rules.UsageReport) -> None:
    closed_at = None if report.state in states.OPEN else BEFORE

    async def write(conn: AsyncConnection) -> None:
        values = {name: getattr(report, name) for name in rules.UsageReport.__dataclass_fields__}
        await conn.execute(sa.insert(tables.usage_reports).values(**values, closed_at=closed_at))

    await transactions.run(write)


@pytest.mark.parametrize("state", ReportState)
async def test_what_is_no_transition_changes_no_row(
    transactions: transactions.Transactions, state: ReportState
) -> None:
    report = stored(state)
    await insert(transactions, report)
    for one in Transition:
        if state not in one.sources:
            change = CHANGES[one]
            assert await transactions.run(lambda conn, change=change: store.write(conn, report, change)) is None  # type: ignore[misc]
    assert await transactions.read(lambda conn: store.find(conn, "org_1", "r1")) == report


@pytest.mark.parametrize(
    ("one", "state"), [pair for pair in product(Transition, ReportState) if pair[1] in pair[0].sources]
)
async def test_a_transition_writes_its_columns_and_its_state(
    transactions: transactions.Transactions, one: Transition, state: ReportState
) -> None:
    report = stored(state)
    await insert(transactions, report)
    found = await transactions.run(lambda conn: store.write(conn, report, CHANGES[one]))
    columns: dict[str, Any] = {name: value for name, value in CHANGES[one].columns.items() if name != "closed_at"}
    assert found == replace(report, **columns, state=one.target)
    assert await transactions.read(lambda conn: store.find(conn, "org_1", "r1")) == found
