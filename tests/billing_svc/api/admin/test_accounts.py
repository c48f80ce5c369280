"""ListAccounts and GetAccount by the real door."""

from datetime import timedelta

import grpc
import pytest

from billing.v1 import admin_pb2, quota_pb2, subscription_pb2, usage_pb2
from tests.acceptance.accounts import START, Account
from tests.billing_svc.refusals import refused
from tests.billing_svc.service import Billing


async def record(billing: Billing, account_id: str, units: int) -> None:
    await billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id=account_id, event_id="e1", meter="runs", quantity=units)
    )


async def listed(billing: Billing, **fields: object) -> list[str]:
    """Return the ids of all pages."""
    found, token = [], ""
    while True:
        request = admin_pb2.ListAccountsRequest(page_token=token, **fields)  # type: ignore[arg-type]
        page = await billing.admin.ListAccounts(request)
        found += [one.account_id for one in page.accounts]
        token = page.next_page_token
        if not token:
            return found


async def test_accounts_are_listed_by_id_in_pages(billing: Billing) -> None:
    ids = sorted(f"org_{n}" for n in range(7))
    for account_id in reversed(ids):
        await record(billing, account_id, 3)
    for size in (0, 1, 2, 6, 7, 8):
        assert await listed(billing, page_size=size) == ids
    assert await listed(billing, account_id_prefix="org_3") == ["org_3"]
    assert await listed(billing, account_id_prefix="org%") == []
    assert await listed(billing, plan="free") == ids
    assert await listed(billing, plan="pro", page_size=2) == []
    assert await listed(billing, status=subscription_pb2.STATUS_NONE) == ids
    assert await listed(billing, status=subscription_pb2.STATUS_ACTIVE) == []


async def test_a_summary_tells_plan_and_usage(billing: Billing) -> None:
    await record(billing, "org", 3)
    (one,) = (await billing.admin.ListAccounts(admin_pb2.ListAccountsRequest())).accounts
    assert (one.subscription.plan, one.subscription.status) == ("free", subscription_pb2.STATUS_NONE)
    usage = {line.meter: line for line in one.usage}
    assert (usage["runs"].used, usage["runs"].included, usage["runs"].percent) == (3, 5, 60)
    told = await billing.usage.GetUsage(usage_pb2.GetUsageRequest(account_id="org"))
    assert list(one.usage) == list(told.meters)


async def test_a_token_of_another_list_or_filter_is_refused(billing: Billing) -> None:
    for n in range(3):
        await record(billing, f"org_{n}", 1)
    page = await billing.admin.ListAccounts(admin_pb2.ListAccountsRequest(page_size=1))
    for request in (
        admin_pb2.ListAccountsRequest(page_token=page.next_page_token, plan="free"),
        admin_pb2.ListAccountsRequest(page_token=page.next_page_token, account_id_prefix="org"),
        admin_pb2.ListAccountsRequest(page_token=page.next_page_token[:-2]),
        admin_pb2.ListAccountsRequest(page_token="x" * 600),
    ):
        assert (await refused(billing.admin.ListAccounts(request))).reason == "INVALID_PAGE_TOKEN"
    audit = admin_pb2.ListAuditEntriesRequest(page_token=page.next_page_token)
    assert (await refused(billing.admin.ListAuditEntries(audit))).reason == "INVALID_PAGE_TOKEN"


async def test_an_account_is_told_with_all_that_is_known_of_it(account: Account) -> None:
    await account.record("e1", "runs", 5)
    await account.billing.admin.SetOverride(
        admin_pb2.SetOverrideRequest(
            account_id=account.account_id, meter="runs", included=9, note="a test", request_id="r1"
        )
    )
    hold = quota_pb2.CheckQuotaRequest(
        account_id=account.account_id, meter="runs", quantity=2, reserve=True, request_id="h1"
    )
    hold.reservation_ttl.FromTimedelta(timedelta(minutes=5))
    await account.billing.quota.CheckQuota(hold)
    request = admin_pb2.GetAccountRequest(account_id=account.account_id)
    told = await account.billing.admin.GetAccount(request)
    assert told.account.account_id == account.account_id
    assert told.account.created_at.ToDatetime(START.tzinfo) == START
    assert [(one.meter, one.included) for one in told.overrides] == [("runs", 9)]
    assert (told.open_alerts, told.held_reservations) == (2, 1)
    assert (told.stripe_customer_id, list(told.subscriptions)) == ("", [])
    account.billing.clock.advance(timedelta(minutes=6))
    assert (await account.billing.admin.GetAccount(request)).held_reservations == 0


async def test_an_unknown_account_is_not_found(billing: Billing) -> None:
    refusal = await refused(billing.admin.GetAccount(admin_pb2.GetAccountRequest(account_id="nobody")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")
    assert refusal.metadata == {"account_id": "nobody"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"account_id_prefix": "a b"}, "account_id_prefix"),
        ({"account_id_prefix": "x" * 129}, "account_id_prefix"),
        ({"plan": "No"}, "plan"),
        ({"page_size": 501}, "page_size"),
        ({"page_size": -1}, "page_size"),
    ],
)
async def test_misuse_names_the_field(billing: Billing, fields: dict[str, object], named: str) -> None:
    refusal = await refused(billing.admin.ListAccounts(admin_pb2.ListAccountsRequest(**fields)))  # type: ignore[arg-type]
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (named,))
