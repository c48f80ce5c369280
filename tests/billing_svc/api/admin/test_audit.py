"""ListAuditEntries by the real door: what was done is listed, by account, caller, action and time."""

import asyncio
from datetime import timedelta

import pytest

from billing.v1 import admin_pb2
from billing_svc.platform.audit import store
from tests.acceptance.accounts import START, Account
from tests.billing_svc.refusals import refused


@pytest.fixture(name="history")
async def history_of(account: Account) -> Account:
    """Four changes, an hour apart, on two accounts."""
    for n, (account_id, action) in enumerate(
        [("org_a", "set"), ("org_b", "set"), ("org_a", "remove"), ("org_a", "set")]
    ):
        if action == "set":
            await account.billing.admin.SetOverride(
                admin_pb2.SetOverrideRequest(
                    account_id=account_id, meter="runs", included=n, note="a test", request_id=f"r{n}"
                )
            )
        else:
            await account.billing.admin.RemoveOverride(
                admin_pb2.RemoveOverrideRequest(account_id=account_id, meter="runs", request_id=f"r{n}")
            )
        account.billing.clock.advance(timedelta(hours=1))
    return account


async def listed(account: Account, **fields: object) -> list[admin_pb2.AuditEntry]:
    found: list[admin_pb2.AuditEntry] = []
    token = ""
    while True:
        request = admin_pb2.ListAuditEntriesRequest(page_token=token, **fields)  # type: ignore[arg-type]
        page = await account.billing.admin.ListAuditEntries(request)
        found += page.entries
        token = page.next_page_token
        if not token:
            return found


async def ids(account: Account, **fields: object) -> list[str]:
    return [entry.request_id for entry in await listed(account, **fields) if entry.request_id]


async def test_audit_entries_come_newest_first_in_pages(history: Account) -> None:
    for size in (1, 2, 3, 50):
        assert await ids(history, page_size=size) == ["r3", "r2", "r1", "r0"]


async def test_audit_entries_are_filtered_by_account_caller_action_and_time(history: Account) -> None:
    assert await ids(history, account_id="org_a") == ["r3", "r2", "r0"]
    assert await ids(history, account_id="org") == []
    assert await ids(history, caller="test") == ["r3", "r2", "r1", "r0"]
    assert await ids(history, caller="somebody") == []
    assert await ids(history, action="remove_override") == ["r2"]
    second = admin_pb2.ListAuditEntriesRequest()
    second.happened_from.FromDatetime(START + timedelta(hours=1))
    second.happened_before.FromDatetime(START + timedelta(hours=3))
    page = await history.billing.admin.ListAuditEntries(second)
    assert [entry.request_id for entry in page.entries] == ["r2", "r1"]


async def test_an_entry_tells_who_when_and_what(history: Account) -> None:
    entry = next(one for one in await listed(history) if one.request_id == "r1")
    assert (entry.caller, entry.source, entry.account_id) == ("test", admin_pb2.AUDIT_SOURCE_RPC, "org_b")
    assert entry.happened_at.ToDatetime(START.tzinfo) == START + timedelta(hours=1)
    assert {change.field: change.after for change in entry.changes}["included"] == "1"


async def test_entries_of_one_instant_are_neither_lost_nor_repeated(account: Account) -> None:
    await asyncio.gather(
        *(
            account.billing.admin.SetOverride(
                admin_pb2.SetOverrideRequest(
                    account_id=f"org_{n}", meter="runs", included=n, note="a test", request_id="same"
                )
            )
            for n in range(9)
        )
    )
    for size in (1, 2, 4):
        accounts = [entry.account_id for entry in await listed(account, page_size=size, action="set_override")]
        assert accounts == [f"org_{n}" for n in reversed(range(9))]


async def test_commands_and_events_are_told_apart(account: Account) -> None:
    entries = await listed(account)
    published = [one for one in entries if one.source == admin_pb2.AUDIT_SOURCE_COMMAND]
    assert [(one.caller, one.action) for one in published] in ([], [("test", "catalog.published")])


async def test_misuse_names_the_field(account: Account) -> None:
    bad = admin_pb2.ListAuditEntriesRequest(account_id="a b", caller="x" * 129, action="x" * 65, page_size=501)
    refusal = await refused(account.billing.admin.ListAuditEntries(bad))
    assert refusal.fields == ("account_id", "caller", "action", "page_size")


async def test_what_the_service_did_by_itself_says_so(history: Account) -> None:
    origin = store.Origin(store.SERVICE)
    await history.billing.transactions.run(
        lambda conn: store.append(conn, origin, "org_a", "usage.charged_late", {"units": 1}, START)
    )
    (entry,) = await listed(history, caller="service")
    assert (entry.caller, entry.source) == ("service", admin_pb2.AUDIT_SOURCE_SERVICE)
    assert entry.action == "usage.charged_late"
