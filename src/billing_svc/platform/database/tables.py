"""The whole schema, with its reasons.

Rules that hold for every table:

- It must shard by account (Citus): `account_id` comes first in the primary key and in every unique key of a table that
  grows, foreign keys stay within an account, rows without an account use the empty string. The exceptions are
  `stripe_events`, `stripe_objects` and `stripe_customers`, which are found by Stripe's ids, and the catalog's tables,
  which do not grow with use.
- Quantities are int64 in the meter's unit; money is never stored as floating point; times are UTC instants that the
  service passes as parameters.
- Checks repeat what the code promises, so that a bug becomes an error instead of wrong money.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    },
)

_INSTANT = sa.DateTime(timezone=True)

# One row for an account that ever mutated anything. A check of an unknown account writes none.
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    # The anchor of free periods where the catalog counts them from signup.
    sa.Column("created_at", _INSTANT, nullable=False),
    # The account's customer at Stripe; stripe_customers is the way back.
    sa.Column("customer_id", sa.Text),
    # The subscription under which pay-as-you-go was switched on, and with which it ends, by the clock; null: off.
    sa.Column("pay_as_you_go_under", sa.Text),
    sa.CheckConstraint("account_id <> ''", name="named"),
    # In the order of bytes: it finds the accounts below one whatever the database's locale (readers, ADR 0014).
    sa.Index("ix_accounts_prefix", "account_id", postgresql_ops={"account_id": "text_pattern_ops"}),
)

# A version is immutable once stored; sold subscriptions refer to it for ever.
catalog_versions = sa.Table(
    "catalog_versions",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    # Not unique: going back to an older content is a new version.
    sa.Column("content_hash", sa.Text, nullable=False),
    # json, not jsonb: the order of plans and prices means something.
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
)

# What we know of a Stripe subscription, as of the last fetch. Never written but by `subscriptions.store.save`.
subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("subscription_id", sa.Text, primary_key=True),
    sa.Column("customer_id", sa.Text, nullable=False),
    # Stripe's own word, also one that this version does not know.
    sa.Column("status", sa.Text, nullable=False),
    # What was sold: the plan with the catalog version and the price that it was sold under.
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("price", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    # False for a metered-only one that carries pay-as-you-go; such a one is no plan subscription.
    sa.Column("is_plan", sa.Boolean, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    # Quota months are counted from here, always.
    sa.Column("anchor", _INSTANT, nullable=False),
    # Stripe's billing period, of the base item.
    sa.Column("billing_period_start", _INSTANT, nullable=False),
    sa.Column("billing_period_end", _INSTANT, nullable=False),
    sa.Column("trial_end", _INSTANT),
    sa.Column("cancel_at_period_end", sa.Boolean, nullable=False),
    sa.Column("cancel_at", _INSTANT),
    sa.Column("ended_at", _INSTANT),
    # The half-open interval in which it gives the account its plan, derived from all of the above on each save: it is
    # what every decision reads. Equal bounds: it never did (incomplete).
    sa.Column("effective_from", _INSTANT, nullable=False),
    sa.Column("effective_until", _INSTANT),
    # The checkout page of ours that it came from; null: it was made in another way.
    sa.Column("checkout_id", sa.Text),
    # A second one, bought while another was in force: it never gives its plan, and is ended as soon as it is seen.
    sa.Column("superfluous", sa.Boolean, nullable=False, server_default=sa.false()),
    # The schedule at Stripe that changes it later, and that change; all null without one.
    sa.Column("schedule_id", sa.Text),
    sa.Column("pending_plan", sa.Text),
    sa.Column("pending_price", sa.Text),
    sa.Column("pending_quantity", sa.BigInteger),
    sa.Column("pending_at", _INSTANT),
    sa.Column("updated_at", _INSTANT, nullable=False),
    sa.CheckConstraint("quantity >= 0", name="quantity"),
    sa.CheckConstraint("effective_until IS NULL OR effective_until >= effective_from", name="effective"),
    sa.CheckConstraint("NOT superfluous OR effective_until = effective_from", name="superfluous"),
    sa.CheckConstraint(
        "num_nulls(pending_plan, pending_price, pending_quantity, pending_at) IN (0, 4)", name="pending"
    ),
    # A decision reads those in force and those that ended within its horizon, however many there ever were.
    sa.Index("ix_subscriptions_effective", "account_id", "effective_until"),
)

# The totals of one account, meter and quota period. All mutations of a counter lock its row first.
usage_counters = sa.Table(
    "usage_counters",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, primary_key=True),
    sa.Column("period_start", _INSTANT, primary_key=True),
    sa.Column("period_end", _INSTANT, nullable=False),
    # Consumable: the sum of the period's events. Gauge: the period's peak.
    sa.Column("used", sa.BigInteger, nullable=False, server_default="0"),
    # Of a gauge: its level when this was last written, the last one of a period that is past. Null on consumables.
    sa.Column("level", sa.BigInteger),
    sa.Column("reserved", sa.BigInteger, nullable=False, server_default="0"),
    # The units that fell beyond the included quantity under the terms in force when they were recorded.
    sa.Column("billable", sa.BigInteger, nullable=False, server_default="0"),
    # How much of `billable` is in usage_reports rows.
    sa.Column("sealed", sa.BigInteger, nullable=False, server_default="0"),
    # The terms under which it was last written: late events of this period are counted under them.
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("subscription_id", sa.Text),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("pay_as_you_go", sa.Boolean, nullable=False),
    # Null: unlimited. With `overridden`, an override of the account's own decided it.
    sa.Column("included", sa.BigInteger),
    sa.Column("overridden", sa.Boolean, nullable=False),
    # When usage first went beyond the included quantity in this period; a grace counts from here.
    sa.Column("exceeded_at", _INSTANT),
    sa.Column("updated_at", _INSTANT, nullable=False),
    sa.CheckConstraint("period_start < period_end", name="period"),
    sa.CheckConstraint("used >= 0", name="used"),
    sa.CheckConstraint("reserved >= 0", name="reserved"),
    sa.CheckConstraint("billable BETWEEN 0 AND used", name="billable"),
    # The reporting worker looks for what is not sealed yet, and finds only that.
    sa.Index("ix_usage_counters_unsealed", "account_id", postgresql_where=sa.text("billable <> sealed")),
)

# One immutable fact each. The key is promise 1: an event id counts once in its account, for as long as it is kept.
usage_events = sa.Table(
    "usage_events",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
    # What was sent, as sent; a repeat is compared with these.
    sa.Column("sent_meter", sa.Text),
    sa.Column("sent_operation", sa.Text),
    sa.Column("sent_quantity", sa.BigInteger),
    sa.Column("sent_level", sa.BigInteger),
    sa.Column("sent_occurred_at", _INSTANT),
    sa.Column("properties", JSONB),
    # What it meant: `units` went into the counter (meter, period_start), `billable` of them beyond the included.
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("period_start", _INSTANT, nullable=False),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("billable", sa.BigInteger, nullable=False),
    sa.Column("occurred_at", _INSTANT, nullable=False),
    sa.Column("recorded_at", _INSTANT, nullable=False),
    sa.Column("retry_attempt", sa.Integer, nullable=False, server_default="0"),
    # A correction points to the event that it lowers or voids.
    sa.Column("corrects_event_id", sa.Text),
    sa.Column("reservation_id", sa.Text),
    sa.Column("reservation_outcome", sa.Text),
    # Who sent it, in which request: usage is its own audit.
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    # The answer's numbers, so that a repeat is given the first answer again.
    sa.Column("period_end", _INSTANT, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("used_after", sa.BigInteger, nullable=False),
    sa.Column("reserved_after", sa.BigInteger, nullable=False),
    sa.Column("billable_after", sa.BigInteger, nullable=False),
    sa.Column("remaining_after", sa.BigInteger, nullable=False),
    # Null: unlimited.
    sa.Column("included", sa.BigInteger),
    sa.Column("overridden", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # A gauge's set or change that happened before the last set.
    sa.Column("superseded", sa.Boolean, nullable=False, server_default=sa.false()),
    # What the event's hold promised: those of its billable units that are charged under the terms of the hold, where
    # these are not those of `plan` and `catalog_version`.
    sa.Column("held_plan", sa.Text),
    sa.Column("held_catalog_version", sa.Integer),
    sa.Column("held_billable", sa.BigInteger),
    sa.CheckConstraint("account_id <> '' AND event_id <> ''", name="named"),
    # The split of a period by operation and by day. The condition holds for every row: only a query that repeats it can
    # use this index, so that no look-up of an event id ever goes through all of an account's events instead of the key.
    sa.Index(
        "ix_usage_events_period", "account_id", "meter", "period_start", postgresql_where=sa.text("account_id <> ''")
    ),
    # Whether a counter has units that are charged under the terms of holds.
    sa.Index(
        "ix_usage_events_held",
        "account_id",
        "meter",
        "period_start",
        postgresql_where=sa.text("held_plan IS NOT NULL"),
    ),
    # A correction finds what is left of its event.
    sa.Index(
        "ix_usage_events_corrections",
        "account_id",
        "corrects_event_id",
        postgresql_where=sa.text("corrects_event_id IS NOT NULL"),
    ),
)

# Gauges have one level per account and meter, without a period.
gauge_levels = sa.Table(
    "gauge_levels",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, primary_key=True),
    sa.Column("level", sa.BigInteger, nullable=False),
    # A set or a change that happened before this is stored without effect.
    sa.Column("set_at", _INSTANT),
    # Until when its peak is accounted for: the end of the last period that was opened with it. The worker opens the
    # next one where nothing is recorded.
    sa.Column("opened_until", _INSTANT, nullable=False),
    sa.CheckConstraint("level >= 0", name="level"),
    sa.Index("ix_gauge_levels_opened_until", "opened_until", postgresql_where=sa.text("level > 0")),
)

# What an account has of a meter in place of what its plan includes. Null: unlimited.
account_overrides = sa.Table(
    "account_overrides",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, primary_key=True),
    sa.Column("included", sa.BigInteger),
    sa.Column("expires_at", _INSTANT),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("set_by", sa.Text, nullable=False),
    sa.Column("set_at", _INSTANT, nullable=False),
    sa.CheckConstraint("included >= 0", name="included"),
)

# How many checks an account was allowed in its present window; only where its plan has a rate limit.
rate_windows = sa.Table(
    "rate_windows",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("window_start", _INSTANT, nullable=False),
    sa.Column("admitted", sa.BigInteger, nullable=False),
)

reservations = sa.Table(
    "reservations",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("reservation_id", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False),
    # The counter that holds it, and is relieved of it.
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("period_start", _INSTANT, nullable=False),
    sa.Column("units", sa.BigInteger, nullable=False),
    # What was asked for, as sent; a repeat of the request id is compared with these.
    sa.Column("sent_meter", sa.Text, nullable=False),
    sa.Column("sent_operation", sa.Text, nullable=False),
    sa.Column("sent_quantity", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("expires_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    sa.Column("event_id", sa.Text),
    sa.Column("caller", sa.Text, nullable=False),
    # The first answer, which a repeat of the request gets again, and the terms that its units are counted under when
    # they are settled. Null before version 0007.
    sa.Column("period_end", _INSTANT),
    sa.Column("plan", sa.Text),
    sa.Column("catalog_version", sa.Integer),
    sa.Column("quantity", sa.BigInteger),
    sa.Column("pay_as_you_go", sa.Boolean),
    sa.Column("past_due", sa.Boolean),
    # Null with a plan: unlimited.
    sa.Column("included", sa.BigInteger),
    sa.Column("overridden", sa.Boolean),
    sa.Column("used", sa.BigInteger),
    sa.Column("reserved", sa.BigInteger),
    sa.Column("billable", sa.BigInteger),
    sa.Column("remaining", sa.BigInteger),
    sa.Column("reason", sa.Text),
    sa.Column("units_beyond", sa.BigInteger),
    sa.Column("projected_cost", sa.Numeric),
    sa.Column("grace_ends_at", _INSTANT),
    # The same request is the same reservation.
    sa.UniqueConstraint("account_id", "request_id"),
    sa.CheckConstraint("units > 0", name="units"),
    sa.CheckConstraint("state IN ('held', 'settled', 'released', 'expired')", name="state"),
    sa.CheckConstraint("(state = 'held') = (closed_at IS NULL)", name="closed"),
    # Expired holds must never stand in the way, so each decision finds those of its counter.
    sa.Index(
        "ix_reservations_held",
        "account_id",
        "meter",
        "period_start",
        "expires_at",
        postgresql_where=sa.text("state = 'held'"),
    ),
    # The worker's sweep.
    sa.Index("ix_reservations_expiring", "expires_at", postgresql_where=sa.text("state = 'held'")),
)

# A contiguous slice (from_units, to_units] of a counter's billable total; docs/adr/0007 has its states. It may grow
# until it is first sent, and never changes after that.
usage_reports = sa.Table(
    "usage_reports",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("report_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("period_start", _INSTANT, nullable=False),
    sa.Column("slice", sa.Integer, nullable=False),
    sa.Column("from_units", sa.BigInteger, nullable=False),
    sa.Column("to_units", sa.BigInteger, nullable=False),
    # The terms that it is charged under, and the subscription whose invoices carry it; null: none does.
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("subscription_id", sa.Text),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("stripe_event_name", sa.Text, nullable=False),
    # The event's timestamp, inside the billing period, which ends (as far as is known when it is sealed) at period_end.
    sa.Column("reported_for", _INSTANT, nullable=False),
    sa.Column("period_end", _INSTANT, nullable=False),
    # What Stripe knows it by. A new one is given only to what is certain not to be at Stripe.
    sa.Column("identifier", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_attempt_at", _INSTANT, nullable=False),
    # Stored before the call. Null: certain not to be at Stripe.
    sa.Column("first_attempt_at", _INSTANT),
    sa.Column("last_attempt_at", _INSTANT),
    # Stripe said that it is wrong, but an earlier attempt may have arrived: its meter tells.
    sa.Column("refused_at", _INSTANT),
    sa.Column("error", sa.Text),
    # Of what is charged as an invoice item: its amount in minor units, and the item, if that is not 0.
    sa.Column("amount", sa.BigInteger),
    sa.Column("invoice_item_id", sa.Text),
    sa.Column("sealed_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    # Slices of a counter follow each other without gap or overlap: the next one takes the next number.
    sa.UniqueConstraint("account_id", "meter", "period_start", "slice"),
    sa.UniqueConstraint("account_id", "identifier"),
    sa.CheckConstraint("(from_units = to_units) = (state = 'void')", name="slice"),
    sa.CheckConstraint("from_units >= 0 AND to_units >= 0", name="bounds"),
    sa.CheckConstraint("length(identifier) <= 100", name="identifier"),
    # 'sealed': to be sent. 'late': to be an invoice item. 'itemised': that is made, and waits for an invoice of its
    # own. 'void': corrected away before it was sent.
    sa.CheckConstraint("state IN ('sealed', 'late', 'itemised', 'sent', 'invoiced', 'failed', 'void')", name="state"),
    sa.CheckConstraint("(state IN ('sealed', 'late', 'itemised')) = (closed_at IS NULL)", name="closed"),
    sa.CheckConstraint("(state IN ('itemised', 'invoiced')) <= (amount IS NOT NULL)", name="amount"),
    # What the worker has to do something about.
    sa.Index(
        "ix_usage_reports_open",
        "next_attempt_at",
        postgresql_where=sa.text("state IN ('sealed', 'late', 'itemised')"),
    ),
    sa.Index(
        "ix_usage_reports_account_open",
        "account_id",
        postgresql_where=sa.text("state IN ('sealed', 'late', 'itemised')"),
    ),
    # Stripe's error reports name nothing else.
    sa.Index("ix_usage_reports_identifier", "identifier"),
    # What an operator has to look at is counted every few seconds.
    sa.Index("ix_usage_reports_failed", "account_id", postgresql_where=sa.text("state = 'failed'")),
)

usage_alerts = sa.Table(
    "usage_alerts",
    metadata,
    # The key is "exactly once": a new included quantity opens the thresholds again.
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, primary_key=True),
    sa.Column("period_start", _INSTANT, primary_key=True),
    sa.Column("threshold_percent", sa.Integer, primary_key=True),
    sa.Column("included", sa.BigInteger, primary_key=True),
    # What callers name it by.
    sa.Column("alert_id", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Column("raised_at", _INSTANT, nullable=False),
    sa.Column("acknowledged_at", _INSTANT),
    sa.Column("acknowledged_by", sa.Text),
    sa.CheckConstraint("severity IN ('warning', 'critical', 'exceeded')", name="severity"),
    sa.UniqueConstraint("account_id", "alert_id"),
    # Lists run newest first.
    sa.Index("ix_usage_alerts_raised", "account_id", "raised_at", "threshold_percent", "alert_id"),
)

# As of the last fetch. No foreign key to subscriptions: an invoice may arrive before its subscription.
invoices = sa.Table(
    "invoices",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("invoice_id", sa.Text, primary_key=True),
    sa.Column("subscription_id", sa.Text),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("number", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    # Minor units.
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("amount_due", sa.BigInteger, nullable=False),
    sa.Column("amount_paid", sa.BigInteger, nullable=False),
    # Attempts to collect it so far, the failed ones among them.
    sa.Column("attempt_count", sa.Integer, nullable=False),
    sa.Column("next_payment_attempt_at", _INSTANT),
    sa.Column("due_at", _INSTANT),
    sa.Column("paid_at", _INSTANT),
    sa.Column("period_start", _INSTANT, nullable=False),
    sa.Column("period_end", _INSTANT, nullable=False),
    # The first so many; whether Stripe has more.
    sa.Column("lines", JSONB, nullable=False),
    sa.Column("more_lines", sa.Boolean, nullable=False),
    sa.Column("hosted_url", sa.Text),
    sa.Column("pdf_url", sa.Text),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("updated_at", _INSTANT, nullable=False),
    # Lists run newest first: one account's, and all.
    sa.Index("ix_invoices_account_created", "account_id", "created_at", "invoice_id"),
    sa.Index("ix_invoices_created", "created_at", "invoice_id"),
)

# The one look-up from Stripe's side to ours.
stripe_customers = sa.Table(
    "stripe_customers",
    metadata,
    sa.Column("customer_id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("linked_at", _INSTANT, nullable=False),
    sa.Column("deleted_at", _INSTANT),
)

# Every price ever made, for ever: a subscription may hold one whose lookup key has moved on.
stripe_prices = sa.Table(
    "stripe_prices",
    metadata,
    sa.Column("price_id", sa.Text, primary_key=True),
    sa.Column("lookup_key", sa.Text, nullable=False),
    sa.Column("product_id", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    # The plan's price for a base item; empty for a metered one, which names its meter instead.
    sa.Column("price", sa.Text, nullable=False),
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("pay_as_you_go", sa.Boolean, nullable=False),
    sa.Column("stripe_event_name", sa.Text),
    # False once a newer price took over its lookup key.
    sa.Column("is_current", sa.Boolean, nullable=False),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.CheckConstraint("(price = '') <> (meter = '')", name="base_or_metered"),
    sa.Index("uq_stripe_prices_current", "lookup_key", unique=True, postgresql_where=sa.text("is_current")),
)

# One checkout page. At most one is open for an account, whatever races.
checkouts = sa.Table(
    "checkouts",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("checkout_id", sa.Text, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("price", sa.Text, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("success_url", sa.Text, nullable=False),
    sa.Column("cancel_url", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    # 'opening': the intent is stored, Stripe has not answered yet.
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text),
    sa.Column("url", sa.Text),
    sa.Column("expires_at", _INSTANT),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    sa.CheckConstraint("state IN ('opening', 'open', 'complete', 'expired')", name="state"),
    sa.CheckConstraint("(state = 'open') <= (session_id IS NOT NULL AND url IS NOT NULL)", name="open"),
    sa.Index(
        "uq_checkouts_one_open",
        "account_id",
        unique=True,
        postgresql_where=sa.text("state IN ('opening', 'open')"),
    ),
)

# What a caller asked of a subscription under a request id, so that the same again gives the same, and other content is
# refused. Kept for good.
change_requests = sa.Table(
    "change_requests",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    # As sent; a repeat is compared with it.
    sa.Column("content", JSONB, nullable=False),
    # What it came to when it was first seen; repeats carry out just this, whatever the catalog has become.
    sa.Column("target", JSONB, nullable=False),
    # What was answered beside the subscription; null while it is under way.
    sa.Column("answer", JSONB),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    sa.CheckConstraint("account_id <> '' AND request_id <> ''", name="named"),
)

# What the worker has to do about a subscription at Stripe, because of something that happened here. The row goes when
# it is done; a new cause gives it a new id, under which it is done anew.
subscription_duties = sa.Table(
    "subscription_duties",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("subscription_id", sa.Text, primary_key=True),
    sa.Column("duty_id", sa.Text, nullable=False),
    sa.Column("due_at", _INSTANT, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("note", sa.Text),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Index("ix_subscription_duties_due_at", "due_at"),
)

# The intent before a Stripe write, its result after. The idempotency key and the exact parameters come from here, so
# that a crash anywhere can be repeated.
stripe_requests = sa.Table(
    "stripe_requests",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    # What it is for, as a key: 'customer', 'checkout:<id>', ... One intent for each purpose.
    sa.Column("purpose", sa.Text, primary_key=True),
    sa.Column("idempotency_key", sa.Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("params", JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("result", JSONB),
    sa.Column("error", sa.Text),
    # Stripe keeps a 500 as the answer under the key: look the object up before a new attempt under a new one.
    sa.Column("answered_500", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    sa.CheckConstraint("state IN ('open', 'done', 'refused')", name="state"),
    sa.CheckConstraint("(state = 'open') = (closed_at IS NULL)", name="closed"),
)

# The inbox: webhook events as received. The key is Stripe's own event id.
stripe_events = sa.Table(
    "stripe_events",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    # The Stripe object that applying it refreshes; one worker at a time works on an object.
    sa.Column("object_id", sa.Text, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False, server_default=""),
    sa.Column("livemode", sa.Boolean, nullable=False),
    sa.Column("api_version", sa.Text),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("received_at", _INSTANT, nullable=False),
    # The verified bytes; null once it was applied or ignored long ago. The row stays, so that its id counts once.
    sa.Column("body", sa.LargeBinary),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_attempt_at", _INSTANT, nullable=False),
    sa.Column("note", sa.Text),
    sa.Column("closed_at", _INSTANT),
    sa.CheckConstraint("event_id <> ''", name="named"),
    sa.CheckConstraint("state IN ('waiting', 'applied', 'ignored', 'failed')", name="state"),
    sa.CheckConstraint("(state = 'waiting') = (closed_at IS NULL)", name="closed"),
    sa.Index("ix_stripe_events_waiting", "next_attempt_at", postgresql_where=sa.text("state = 'waiting'")),
    sa.CheckConstraint("body IS NOT NULL OR state IN ('applied', 'ignored')", name="body"),
    # Also finds what failed: a fresh fetch for a new event serves it as well.
    sa.Index("ix_stripe_events_object", "object_id", postgresql_where=sa.text("state IN ('waiting', 'failed')")),
    sa.Index("ix_stripe_events_received", "received_at", "event_id"),
    # Bodies to be deleted.
    sa.Index(
        "ix_stripe_events_bodies",
        "closed_at",
        postgresql_where=sa.text("body IS NOT NULL AND state IN ('applied', 'ignored')"),
    ),
)

# The lease of a Stripe object: who may apply its events now. A holder whose number was passed has lost it.
stripe_objects = sa.Table(
    "stripe_objects",
    metadata,
    sa.Column("object_id", sa.Text, primary_key=True),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("leased_until", _INSTANT, nullable=False),
)

# One row per mutation that is not usage, in its transaction.
audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("entry_id", sa.Text, primary_key=True),
    sa.Column("at", _INSTANT, nullable=False),
    # 'caller:<name>', 'operator:<login>' or 'stripe:<event id>'.
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("changes", JSONB, nullable=False),
    sa.Index("ix_audit_log_account_at", "account_id", "at", "entry_id"),
    # Operators list all accounts' together, newest first.
    sa.Index("ix_audit_log_at", "at", "account_id", "entry_id"),
)

# Which accounts a login that reads the database itself sees. The service neither reads nor writes it.
reader_accounts = sa.Table(
    "reader_accounts",
    metadata,
    # The name that it logs in with.
    sa.Column("login", sa.Text, primary_key=True),
    # This account and those below it, as scope.py has it for callers; `readable.account_ids()` finds them.
    sa.Column("account_prefix", sa.Text, primary_key=True),
    # Every id begins with the empty string.
    sa.CheckConstraint("account_prefix <> ''", name="named"),
)
