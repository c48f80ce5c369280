"""A subscription whose anchor and trial a person moves in Stripe's dashboard."""

from datetime import UTC, datetime

from billing.v1 import usage_pb2
from tests.billing_svc.money.ledger import Ledger

# The plans of the recipes: $20 with 10 runs and $1 beyond; a plan with a trial; a plan that counts calendar months.
CATALOG = """
catalog: moved
currency: usd
default_plan: free
meters:
  runs: {unit: run, kind: consumable}
  seats: {unit: seat, kind: gauge}
plans:
  free:
    name: Free
    limits: {runs: {included: 2, beyond: deny}, seats: {included: 1, beyond: deny}}
  a:
    name: A
    prices:
      monthly: {amount: "20.00", interval: month}
    limits:
      runs: {included: 10, beyond: charge, unit_price: "1.00"}
      seats: {included: 2, beyond: charge, unit_price: "3.00"}
  tried:
    name: Tried
    trial_days: 10
    prices:
      monthly: {amount: "20.00", interval: month}
    limits: {runs: {included: 10, beyond: charge, unit_price: "1.00"}}
  year:
    name: Year
    prices:
      yearly: {amount: "200.00", interval: year}
    limits: {runs: {included: 50, beyond: deny}}
  calendar:
    name: Calendar
    quota_period: calendar_month
    prices:
      monthly: {amount: "20.00", interval: month}
    limits: {runs: {included: 10, beyond: deny}}
"""


class Support:
    """A person in Stripe's dashboard who moves the periods of the account's subscription."""

    def __init__(self, ledger: Ledger, subscription_id: str) -> None:
        self.ledger = ledger
        self.path = f"/v1/subscriptions/{subscription_id}"

    @property
    def now(self) -> datetime:
        return self.ledger.world.billing.clock.now()

    async def trial_until(self, end: datetime) -> None:
        await self.ledger.world.sandbox.call("POST", self.path, trial_end=int(end.timestamp()))
        await self.ledger.world.deliver_new()

    async def end_trial(self) -> None:
        await self.ledger.world.sandbox.call("POST", self.path, trial_end="now")
        await self.ledger.world.deliver_new()

    async def reset_anchor(self) -> None:
        await self.ledger.world.sandbox.call("POST", self.path, **{"billing_cycle_anchor[type]": "now"})
        await self.ledger.world.deliver_new()


async def begun(account: Ledger, **more: str) -> Support:
    return Support(account, await account.buy(**{"plan": "a", **more}))


async def shown(account: Ledger, at: datetime) -> tuple[datetime, datetime, int]:
    request = usage_pb2.GetUsageRequest(account_id="org_1", meters=["runs"])
    request.period_containing.FromDatetime(at)
    told = await account.world.billing.usage.GetUsage(request)
    return told.period_start.ToDatetime(UTC), told.period_end.ToDatetime(UTC), told.meters[0].used
