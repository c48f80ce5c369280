"""Computes a bill: for a plan and quantities, for an account's usage so far, or for that usage on another plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, parts, versions
from billing_svc.metering.quota import periods, terms
from billing_svc.metering.usage_summary import rules as summary_rules
from billing_svc.metering.usage_summary import summarize_usage
from billing_svc.platform import errors, money
from billing_svc.pricing import rules
from billing_svc.stripe import prices, subscription_records
from billing_svc.subscriptions.previews import rules as preview_rules


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """What to compute; a field left out ("", None) is the account's value, or else the plan's default."""

    account_id: str
    plan: str
    price: str
    quantity: int | None
    usage: Mapping[str, int]
    pay_as_you_go: bool | None


@dataclass(frozen=True, slots=True)
class _Basis:
    """The data before the choice: the newest catalog, and the account's usage summary and price."""

    newest_version: int
    newest: model.Catalog
    statement: summary_rules.UsageSummary | None
    own_price: str
    # The account's price if it was made by hand.
    own_custom: prices.CustomPrice | None = None

    @property
    def own(self) -> terms.EffectiveTerms | None:
        return None if self.statement is None else self.statement.under


async def preview(
    conn: AsyncConnection, catalogs: versions.CatalogCache, request: PreviewRequest, now: datetime
) -> preview_rules.Bill:
    """Return the bill. A named plan is the newest catalog's; the account's plan has the version that it was sold under.

    Raises PlanNotFound, PriceNotFound, MeterNotFound, PayAsYouGoNotOffered, and InvalidRequest on the quantity.
    """
    basis = await _basis(conn, catalogs, request, now)
    under, catalog = await _terms(conn, catalogs, request, basis, now)
    price_name = _price(request, under.plan, basis.own_price)
    under = replace(under, quantity=_seats(request, under, price_name))
    if request.pay_as_you_go and under.plan.pay_as_you_go is None:
        message = f"pay_as_you_go: plan {under.plan.key} does not offer it"
        raise errors.PayAsYouGoNotOffered(message, {"plan": under.plan.key})
    return preview_rules.Bill(
        under=under,
        catalog=catalog,
        base=_base(request, basis, under, price_name, catalog),
        lines=_meter_lines(request, basis, under, catalog, now),
        of_account=basis.own is not None,
    )


async def _basis(
    conn: AsyncConnection, catalogs: versions.CatalogCache, request: PreviewRequest, now: datetime
) -> _Basis:
    newest_version = await versions.newest_published(conn)
    newest = await catalogs.get(conn, newest_version)
    if not request.account_id:
        return _Basis(newest_version, newest, statement=None, own_price="")
    statement = await summarize_usage.summarize(conn, catalogs, summarize_usage.SummaryQuery(request.account_id), now)
    subscription = statement.under.subscription
    own_price, own_custom = "", None
    if subscription is not None:
        rows = await subscription_records.plan_subscriptions(conn, request.account_id)
        row = next((row for row in rows if row.subscription_id == subscription.subscription_id), None)
        if row is not None:
            own_price = row.price
            own_custom = (await prices.custom_prices(conn, [row.custom_price_id])).get(row.custom_price_id or "")
    return _Basis(newest_version, newest, statement, own_price, own_custom)


async def _terms(
    conn: AsyncConnection, catalogs: versions.CatalogCache, request: PreviewRequest, basis: _Basis, now: datetime
) -> tuple[terms.EffectiveTerms, model.Catalog]:
    """Return the terms of the bill, with the seats still to be set, and their catalog."""
    own = basis.own
    pay_as_you_go = request.pay_as_you_go
    if pay_as_you_go is None:
        pay_as_you_go = own is not None and own.pay_as_you_go
    if own is not None and not request.plan:
        return replace(own, pay_as_you_go=pay_as_you_go), await catalogs.get(conn, own.catalog_version)
    try:
        plan = basis.newest.plan(request.plan)
    except KeyError:
        message = f"plan: the catalog has no plan {request.plan!r}"
        raise errors.PlanNotFound(message, {"plan": request.plan}) from None
    # The period has no effect here.
    under = own or terms.EffectiveTerms(
        basis.newest_version, basis.newest, plan, None, 1, pay_as_you_go, periods.calendar_month(now)
    )
    under = replace(
        under, catalog_version=basis.newest_version, catalog=basis.newest, plan=plan, pay_as_you_go=pay_as_you_go
    )
    return under, basis.newest


def _base(
    request: PreviewRequest, basis: _Basis, under: terms.EffectiveTerms, price_name: str, catalog: model.Catalog
) -> rules.BaseLine | None:
    """Return the line of the plan's price; None if it has none, or if the account's own price has tiers."""
    custom = basis.own_custom
    if custom is not None and not request.plan and not request.price:
        if (
            custom.unit_amount is None
            or custom.currency != catalog.currency
            or custom.interval not in {"month", "year"}
        ):
            return None
        amount = money.in_major_units(custom.unit_amount, custom.currency)
        price = parts.Price.model_construct(
            amount=amount,
            interval=custom.interval,
            per_seat=under.plan.per_seat,
        )
        seats = under.quantity if price.per_seat else 1
        return rules.BaseLine(under.plan, price, "", seats, rules.rounded(amount * seats, catalog.currency))
    return rules.base_line(under.plan, price_name, under.quantity, catalog.currency) if price_name else None


def _price(request: PreviewRequest, plan: parts.Plan, own_price: str) -> str:
    """Return the name of the price; "" if the plan has no price."""
    if request.price:
        if request.price not in plan.prices:
            message = f"price: plan {plan.key} has no price {request.price!r}"
            raise errors.PriceNotFound(message, {"plan": plan.key, "price": request.price})
        return request.price
    if not request.plan and own_price in plan.prices:
        return own_price
    return next(iter(plan.prices), "")


def _seats(request: PreviewRequest, under: terms.EffectiveTerms, price_name: str) -> int:
    """Return the seats: those asked for, or the account's, or 1 for another plan that is not sold by the seat."""
    by_seat = bool(price_name) and under.plan.prices[price_name].per_seat
    if request.quantity is None:
        return under.quantity if by_seat or not request.plan else 1
    if request.quantity > 1 and not by_seat:
        problem = f"is {request.quantity}; plan {under.plan.key} is not sold by the seat at this price"
        raise errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
    return request.quantity


def _meter_lines(
    request: PreviewRequest, basis: _Basis, under: terms.EffectiveTerms, catalog: model.Catalog, now: datetime
) -> tuple[preview_rules.MeterLine, ...]:
    definitions = {
        **basis.newest.meters,
        **{key: meter for key, meter in catalog.meters.items() if key in under.plan.limits},
    }
    for meter in request.usage:
        if meter not in definitions:
            raise errors.MeterNotFound(f"usage: the catalog has no meter {meter!r}", {"meter": meter})
    known = {} if basis.statement is None else {line.meter: line for line in basis.statement.lines}
    # On the terms of the counter itself, exactly the counter's billable units are charged.
    is_own = basis.own == under
    lines = []
    for meter, definition in definitions.items():
        line = known.get(meter)
        allowance = under.allowance(meter, None if line is None else line.override, now)
        quantity = preview_rules.MeterQuantity(0)
        if meter in request.usage:
            quantity = preview_rules.MeterQuantity(request.usage[meter])
        elif line is not None:
            quantity = preview_rules.MeterQuantity(line.counter.used, line.counter if is_own else None)
        if allowance.limit is not None or quantity.units or meter in request.usage:
            lines.append(preview_rules.meter_line(meter, definition, under, allowance, quantity, catalog.currency))
    return tuple(lines)
