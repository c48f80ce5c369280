"""Mending what a reconciliation found about usage, as far as that needs no person's judgement."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.reconciliation import drifts
from billing_svc.stripe import client
from billing_svc.usage_export import flushing, judging, retrying, rules, store

_MINUTE = timedelta(minutes=1)


class Mending:
    """Takes up again what Stripe lacks."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._stripe = stripe
        self._clock = now
        self._flush = flushing.Flush(database, catalogs, stripe, now)

    async def mend(self, found: Sequence[drifts.Drift], origin: audit_store.Origin) -> None:
        """Mend what can be; another comparison shows what is left."""
        for drift in found:
            match drift.kind:
                case drifts.Kind.METER if drift.theirs < drift.ours:
                    await self._reopen_missing(drift, origin)
                case drifts.Kind.LINE if drift.theirs < drift.ours:
                    await self._charge_unbilled(drift, origin)
                case drifts.Kind.UNINVOICED:
                    await self._invoice_alone(drift, origin)
                case _:
                    pass
        for account_id in dict.fromkeys(one.account_id for one in found):
            now = self._clock.now()
            await self._database.run(
                lambda conn, one=account_id, now=now: retrying.retry_all(conn, one, origin, now)  # type: ignore[misc]
            )
            try:
                await self._flush.flush(account_id)
            except errors.UsageNotReported:
                continue  # the next comparison shows it

    async def _reports(self, account_id: str) -> list[rules.Report]:
        since = self._clock.now() - drifts.LOOKED_BACK
        return await self._database.read(lambda conn: store.all_of_account(conn, account_id, since))

    async def _reopen_missing(self, drift: drifts.Drift, origin: audit_store.Origin) -> None:
        """Take those slices for lost that a minute's sum lacks, if it is plain which ones they are."""
        meters = (await self._stripe.meter_ids()).get(drift.event_name)
        if meters is None:
            return  # Stripe deletes no meter: this is not the account that the usage was sent to
        minutes: dict[datetime, list[rules.Report]] = {}
        for one in await self._reports(drift.account_id):
            if one.stripe_event_name == drift.event_name and one.state == "sent":
                minutes.setdefault(one.minute, []).append(one)
        for minute, reports in minutes.items():
            if max(one.last_attempt_at or minute for one in reports) + judging.SUMS_LAG_MAX > self._clock.now():
                continue  # it may yet appear
            total = await self._stripe.meter_total(meters, reports[0].customer_id, minute, minute + _MINUTE)
            missing = sum(one.units for one in reports) - total
            lost = reports if total == 0 else [one for one in reports if one.units == missing]
            if missing and sum(one.units for one in lost) == missing:
                values = {"state": "failed", "error": "its meter does not have it", "first_attempt_at": None}
                await self._change(lost, values, "usage.report_failed", origin)

    async def _charge_unbilled(self, drift: drifts.Drift, origin: audit_store.Origin) -> None:
        """Charge by invoice items what reached its meter and is on no invoice: the newest slices that come to it."""
        unbilled, left = [], drift.ours - drift.theirs
        for one in reversed(await self._reports(drift.account_id)):
            is_of = (one.meter, one.period_start, one.stripe_event_name, one.state) == (
                drift.meter,
                drift.period_start,
                drift.event_name,
                "sent",
            )
            if is_of and left:
                unbilled.append(one)
                left -= one.units
        if left == 0:
            now = self._clock.now()
            values = {"state": "late", "error": "its invoice does not charge it", "next_attempt_at": now}
            await self._change(unbilled, {**values, "closed_at": None}, "usage.report_unbilled", origin)

    async def _invoice_alone(self, drift: drifts.Drift, origin: audit_store.Origin) -> None:
        """Let an item that no invoice takes in have one of its own."""
        left = [one for one in await self._reports(drift.account_id) if one.report_id == drift.report_id]
        values = {"state": "itemised", "error": "its item was on no invoice", "next_attempt_at": self._clock.now()}
        await self._change(left, {**values, "closed_at": None}, "usage.item_uninvoiced", origin)

    async def _change(
        self, reports: Sequence[rules.Report], values: Mapping[str, Any], action: str, origin: audit_store.Origin
    ) -> None:
        now = self._clock.now()

        async def change(conn: AsyncConnection) -> None:
            for one in reports:
                if await store.write(conn, one, values):
                    changes = {"report": one.report_id, "meter": one.meter, "units": one.units}
                    await audit_store.append(conn, origin, one.account_id, action, changes, now)

        await self._database.run(change)
