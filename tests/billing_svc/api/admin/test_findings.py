"""ListFindings by the real door: what is open, the oldest first, by account and kind, in pages."""

from datetime import timedelta

import pytest

from billing.v1 import admin_pb2
from billing_svc.platform.findings import store
from tests.acceptance.accounts import START, Account
from tests.billing_svc import refusals


@pytest.fixture(name="wrong")
async def wrong_of(account: Account) -> Account:
    """Four findings, an hour apart; the last was settled."""
    database = account.billing.transactions
    for number, (account_id, kind) in enumerate(
        [
            ("org_b", store.Kind.USAGE_LINE),
            ("", store.Kind.STRANGER),
            ("org_a", store.Kind.USAGE_LINE),
            ("org_a", store.Kind.INVOICE),
        ]
    ):
        money = (1650, "usd") if number == 0 else (None, None)
        finding = store.NewFinding(kind, f"object_{number}", "is wrong", "nothing", *money)
        at = START + timedelta(hours=number)
        await database.run(lambda conn, a=account_id, f=finding, t=at: store.report(conn, a, f, t))  # type: ignore[misc]
    await database.run(lambda conn: store.settle(conn, "org_a", store.Kind.INVOICE, "object_3", START))
    return account


async def listed(account: Account, **fields: object) -> list[admin_pb2.Finding]:
    found: list[admin_pb2.Finding] = []
    token = ""
    while True:
        request = admin_pb2.ListFindingsRequest(page_token=token, **fields)  # type: ignore[arg-type]
        page = await account.billing.admin.ListFindings(request)
        found += page.findings
        token = page.next_page_token
        if not token:
            return found


async def objects(account: Account, **fields: object) -> list[str]:
    return [one.object_id for one in await listed(account, **fields)]


async def test_open_findings_come_oldest_first_in_pages(wrong: Account) -> None:
    for size in (1, 2, 3, 50):
        assert await objects(wrong, page_size=size) == ["object_0", "object_1", "object_2"]


async def test_findings_are_filtered_by_account_and_kind(wrong: Account) -> None:
    assert await objects(wrong, account_id="org_a") == ["object_2"]
    assert await objects(wrong, kind="usage: line") == ["object_0", "object_2"]
    assert await objects(wrong, account_id="org_b", kind="invoice") == []


async def test_a_finding_has_money_since_when_and_what_settles_it(wrong: Account) -> None:
    (first, *others) = await listed(wrong)
    assert (first.kind, first.account_id, first.detail) == ("usage: line", "org_b", "is wrong")
    assert (first.money.currency, first.money.amount, first.settled_by) == ("usd", "16.50", "nothing")
    assert first.since.ToDatetime(START.tzinfo) == START
    assert not any(one.HasField("money") for one in others)


async def test_a_kind_that_is_no_word_and_a_foreign_token_are_refused(wrong: Account) -> None:
    request = admin_pb2.ListFindingsRequest(kind="x" * 65)
    assert (await refusals.refused(wrong.billing.admin.ListFindings(request))).fields == ("kind",)
    page = await wrong.billing.admin.ListFindings(admin_pb2.ListFindingsRequest(page_size=1))
    request = admin_pb2.ListFindingsRequest(kind="invoice", page_token=page.next_page_token)
    assert (await refusals.refused(wrong.billing.admin.ListFindings(request))).reason == "INVALID_PAGE_TOKEN"
