"""Acts of the account's backend: usage in time and late, holds, corrections."""

from datetime import UTC, datetime, timedelta

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from tests.faults.walk.shop import METER
from tests.faults.walk.walker import ACCOUNT, Act, Use, Walker


async def _record(walker: Walker, at: datetime | None = None, hold: str = "") -> None:
    """Record usage as a careful caller does: mostly after a check."""
    units = walker.draw.choice((1, 3, 7, 12, 25))
    checked = at is None and not hold and walker.draw.random() < 0.8
    is_allowed = False
    if checked:
        request = quota_pb2.CheckQuotaRequest(account_id=ACCOUNT, meter=METER, quantity=units)
        decided = await walker.tried(walker.ledger.world.billing.quota.CheckQuota(request))
        is_allowed = decided is not None and decided.decision == decision_pb2.DECISION_ALLOWED
        if not is_allowed and walker.draw.random() < 0.5:
            walker.note(f"  CheckQuota {units}: denied")
            return
    event_id = walker.unique()
    sent = usage_pb2.RecordUsageRequest(
        account_id=ACCOUNT, event_id=event_id, meter=METER, quantity=units, reservation_id=hold
    )
    if at is not None:
        sent.occurred_at.FromDatetime(at)
    answer = await walker.tried(walker.ledger.world.billing.usage.RecordUsage(sent))
    if answer is None:
        return
    start, end = answer.period_start.ToDatetime(UTC), answer.period_end.ToDatetime(UTC)
    when = at if at is not None and start <= at < end else walker.now
    walker.uses.events[event_id] = Use(units, answer.billable, when, start)
    if is_allowed:
        walker.uses.granted[start] = walker.uses.granted.get(start, 0) + units - answer.billable
    walker.note(f"  RecordUsage {units}{f' at {at:%m-%d %H:%M}' if at else ''}: {answer.billable} beyond {answer.plan}")
    if walker.draw.random() < 0.1:
        again = await walker.ledger.world.billing.usage.RecordUsage(sent)
        assert again.duplicate


async def use(walker: Walker) -> None:
    """Use some units."""
    await _record(walker)


async def report_hours_late(walker: Walker) -> None:
    """Report usage that is late by minutes or hours."""
    await _record(walker, walker.now - timedelta(minutes=walker.draw.choice((4, 25, 50, 400))))


async def report_days_late(walker: Walker) -> None:
    """Report usage that is late by days."""
    await _record(walker, walker.now - timedelta(days=walker.draw.randint(1, 20)))


async def hold(walker: Walker) -> None:
    """Reserve units for work that takes long."""
    request = quota_pb2.CheckQuotaRequest(
        account_id=ACCOUNT, meter=METER, quantity=walker.draw.randint(1, 9), reserve=True, request_id=walker.unique()
    )
    request.reservation_ttl.FromTimedelta(timedelta(hours=walker.draw.choice((1, 12))))
    answer = await walker.tried(walker.ledger.world.billing.quota.CheckQuota(request))
    if answer is not None and answer.reservation_id:
        walker.uses.holds.append(answer.reservation_id)


async def settle_a_hold(walker: Walker) -> None:
    """Record usage under a hold."""
    if walker.uses.holds:
        await _record(walker, hold=walker.uses.holds.pop(0))


async def release_a_hold(walker: Walker) -> None:
    """Release a hold."""
    if walker.uses.holds:
        request = quota_pb2.ReleaseReservationRequest(account_id=ACCOUNT, reservation_id=walker.uses.holds.pop(0))
        await walker.tried(walker.ledger.world.billing.quota.ReleaseReservation(request))


async def correct(walker: Walker) -> None:
    """Take recorded units back."""
    event_id = walker.one_of(list(walker.uses.events))
    if event_id is None:
        return
    use_ = walker.uses.events[event_id]
    quantity = walker.draw.randint(1, use_.units)
    request = usage_pb2.CorrectUsageRequest(
        account_id=ACCOUNT, event_id=event_id, correction_id=walker.unique(), quantity=quantity
    )
    answer = await walker.tried(walker.ledger.world.billing.usage.CorrectUsage(request))
    if answer is not None:
        walker.note(f"  CorrectUsage {quantity} of {use_.units}: {answer.billable_quantity} of them beyond")
        walker.uses.corrected += answer.billable_quantity
        walker.uses.granted[use_.period] = walker.uses.granted.get(use_.period, 0) - quantity


ACTS: tuple[tuple[Act, int], ...] = (
    (use, 8),
    (report_hours_late, 3),
    (report_days_late, 2),
    (hold, 2),
    (settle_a_hold, 2),
    (release_a_hold, 1),
    (correct, 2),
)
