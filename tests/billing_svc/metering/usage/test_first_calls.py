from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from tests.billing_svc.service import Billing


async def test_free_account_has_five_runs_and_the_sixth_is_denied_until_the_first(billing: Billing) -> None:
    for n in range(5):
        check = await billing.quota.CheckQuota(quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs"))
        assert check.decision == decision_pb2.DECISION_ALLOWED
        assert (check.used, check.included, check.remaining) == (n, 5, 5 - n)
        recorded = await billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(account_id="org_1", event_id=f"run_{n}", meter="runs")
        )
        assert (recorded.duplicate, recorded.used, recorded.cost) == (False, n + 1, 1)
    denied = await billing.quota.CheckQuota(quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs"))
    assert denied.decision == decision_pb2.DECISION_DENIED
    assert denied.reason == decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
    now = billing.clock.now()
    resets_at = denied.resets_at.ToDatetime()
    assert (resets_at.day, resets_at.hour) == (1, 0)
    assert resets_at.month == now.month % 12 + 1
    assert list(denied.upgrade_plans) == ["pro"]
