"""The whole schema, with its reasons.

Rules that hold for every table:

- It can be sharded by account (Citus): `account_id` comes first in the primary key and in every unique key of a table
  that grows, foreign keys stay within an account, rows without an account use the empty string. The exceptions are
  `stripe_events`, `stripe_objects` and `stripe_customers`, which are found by Stripe's ids, and the catalog's tables,
  which do not grow with use.
- Quantities are int64 in the meter's unit; money is never stored as floating point; times are UTC instants that the
  service passes as parameters.
- Check constraints repeat what the code promises, so that a bug causes an error instead of wrong money.
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

# A row for each account that ever had a mutation. A check of an unknown account writes no row.
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    # The anchor of free periods, if the catalog counts them from signup.
    sa.Column("created_at", _INSTANT, nullable=False),
    # The account's customer at Stripe; stripe_customers maps the customer to the account.
    sa.Column("customer_id", sa.Text),
    # The subscription under which pay-as-you-go was switched on; pay-as-you-go ends when it ends. Null: off.
    sa.Column("pay_as_you_go_under", sa.Text),
    # The latest end of the account's rows in subscription_history; null: it has none. A decision reads that table only
    # if this end lies within its horizon.
    sa.Column("history_until", _INSTANT),
    sa.CheckConstraint("account_id <> ''", name="named"),
    # In byte order: finds the accounts below an account in any locale of the database (readers, ADR 0014).
    sa.Index("ix_accounts_prefix", "account_id", postgresql_ops={"account_id": "text_pattern_ops"}),
)

# A stored version never changes; sold subscriptions refer to it for ever.
catalog_versions = sa.Table(
    "catalog_versions",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    # Not unique: publishing an older content again makes a new version.
    sa.Column("content_hash", sa.Text, nullable=False),
    # json, not jsonb: the order of plans and prices has a meaning.
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
)

# A Stripe subscription as of the last fetch. Only `stripe/subscription_records.py` writes it.
subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("subscription_id", sa.Text, primary_key=True),
    sa.Column("customer_id", sa.Text, nullable=False),
    # Stripe's status, also if this version does not know it.
    sa.Column("status", sa.Text, nullable=False),
    # The sold plan, with the price and the catalog version of the sale.
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("price", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    # False for a subscription with metered items only, which carries pay-as-you-go and gives no plan.
    sa.Column("is_plan", sa.Boolean, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    # Quota months are always counted from this instant.
    sa.Column("anchor", _INSTANT, nullable=False),
    # Stripe's billing period, of the base item.
    sa.Column("billing_period_start", _INSTANT, nullable=False),
    sa.Column("billing_period_end", _INSTANT, nullable=False),
    sa.Column("trial_end", _INSTANT),
    sa.Column("cancel_at_period_end", sa.Boolean, nullable=False),
    sa.Column("cancel_at", _INSTANT),
    sa.Column("ended_at", _INSTANT),
    # The half-open interval in which the subscription gives the account its plan. Derived from the columns above at
    # each save; every decision reads it. Equal bounds: the subscription never gave its plan (incomplete).
    sa.Column("effective_from", _INSTANT, nullable=False),
    sa.Column("effective_until", _INSTANT),
    # The checkout of this service that created the subscription; null if it was created in another way.
    sa.Column("checkout_id", sa.Text),
    # A second subscription, bought while another was in force: it never gives its plan, and the worker ends it.
    sa.Column("superfluous", sa.Boolean, nullable=False, server_default=sa.false()),
    # The schedule at Stripe that changes the subscription later, and the pending change; all null without a schedule.
    sa.Column("schedule_id", sa.Text),
    sa.Column("pending_plan", sa.Text),
    sa.Column("pending_price", sa.Text),
    sa.Column("pending_quantity", sa.BigInteger),
    sa.Column("pending_at", _INSTANT),
    # What Stripe does with the invoices while their collection is paused (void, keep_as_draft, mark_uncollectible), and
    # when it resumes by itself. Null: not paused. The status does not show this pause.
    sa.Column("collection_pause", sa.Text),
    sa.Column("collection_resumes_at", _INSTANT),
    # Why the subscription itself is paused, in Stripe's words.
    sa.Column("pause_reason", sa.Text),
    # Since when, because of either pause, no invoice charges overage, so that it is denied. Null: it is charged.
    sa.Column("overage_denied_from", _INSTANT),
    # When Stripe last opened a billing period out of turn: `anchor` and `trial_end` hold from then on. Null: never, so
    # from `effective_from` on.
    sa.Column("moved_at", _INSTANT),
    # The base item's price if somebody made it at Stripe; `price` is empty then. Null: a price of the catalog.
    sa.Column("custom_price_id", sa.Text),
    # How the items differ from the plan as sold, as event names of Stripe's meters, separated by spaces: meters that
    # no item bills, and meters that a further item bills. Empty, as nearly always: the items are as sold.
    sa.Column("missing_meters", sa.Text, nullable=False, server_default=""),
    sa.Column("extra_meters", sa.Text, nullable=False, server_default=""),
    # Since when its present metered items are there, the newest of them: Stripe bills an item's usage from then on.
    # Null: since the subscription began.
    sa.Column("items_since", _INSTANT),
    # When the worker compares what was sent with what invoices charge: some time after a change of the items, a move of
    # the billing period, or the end. Null: it has.
    sa.Column("settle_at", _INSTANT),
    sa.Column("updated_at", _INSTANT, nullable=False),
    sa.CheckConstraint("quantity >= 0", name="quantity"),
    sa.CheckConstraint("effective_until IS NULL OR effective_until >= effective_from", name="effective"),
    sa.CheckConstraint("NOT superfluous OR effective_until = effective_from", name="superfluous"),
    sa.CheckConstraint(
        "num_nulls(pending_plan, pending_price, pending_quantity, pending_at) IN (0, 4)", name="pending"
    ),
    # A decision reads the subscriptions in force and those that ended within its horizon, and no older rows.
    sa.Index("ix_subscriptions_effective", "account_id", "effective_until"),
    sa.Index("ix_subscriptions_settle_at", "settle_at", postgresql_where=sa.text("settle_at IS NOT NULL")),
)

# The stretches of a subscription before its periods were moved: anchor, trial and terms as they were (ADR 0019). A row
# is written when a move ends its stretch, and never changes.
subscription_history = sa.Table(
    "subscription_history",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("subscription_id", sa.Text, primary_key=True),
    sa.Column("since", _INSTANT, primary_key=True),
    sa.Column("effective_until", _INSTANT, nullable=False),
    # When the subscription began, as in its row.
    sa.Column("effective_from", _INSTANT, nullable=False),
    # Quota months were counted from this instant; before it, from `since`.
    sa.Column("anchor", _INSTANT, nullable=False),
    # A trial covered the time from `since` until here.
    sa.Column("trial_end", _INSTANT),
    # The start of the billing period that the move closed.
    sa.Column("billing_period_start", _INSTANT, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("is_plan", sa.Boolean, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    # Since when, because of a pause, no invoice charged overage; as in the subscription's row.
    sa.Column("overage_denied_from", _INSTANT),
    sa.CheckConstraint("since < effective_until", name="stretch"),
)

# The totals of an account, meter and quota period. Every mutation of a counter locks its row first.
usage_counters = sa.Table(
    "usage_counters",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, primary_key=True),
    sa.Column("period_start", _INSTANT, primary_key=True),
    sa.Column("period_end", _INSTANT, nullable=False),
    # Consumable: the sum of the period's events. Gauge: the period's peak.
    sa.Column("used", sa.BigInteger, nullable=False, server_default="0"),
    # Of a gauge: its level at the counter's last write, so the final level of a past period. Null on consumables.
    sa.Column("level", sa.BigInteger),
    sa.Column("reserved", sa.BigInteger, nullable=False, server_default="0"),
    # The units beyond the included quantity, under the terms that were in force when they were recorded.
    sa.Column("billable", sa.BigInteger, nullable=False, server_default="0"),
    # How much of `billable` is in usage_reports rows.
    sa.Column("sealed", sa.BigInteger, nullable=False, server_default="0"),
    # The terms of the counter's last write: late events of this period are counted under them.
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("subscription_id", sa.Text),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("pay_as_you_go", sa.Boolean, nullable=False),
    # Null: unlimited. With `overridden`, the account's override set it.
    sa.Column("included", sa.BigInteger),
    sa.Column("overridden", sa.Boolean, nullable=False),
    # When usage first exceeded the included quantity in this period; the grace period starts here.
    sa.Column("exceeded_at", _INSTANT),
    sa.Column("updated_at", _INSTANT, nullable=False),
    sa.CheckConstraint("period_start < period_end", name="period"),
    sa.CheckConstraint("used >= 0", name="used"),
    sa.CheckConstraint("reserved >= 0", name="reserved"),
    sa.CheckConstraint("billable BETWEEN 0 AND used", name="billable"),
    # For the worker's search for unsealed usage; the index holds only counters that have some.
    sa.Index("ix_usage_counters_unsealed", "account_id", postgresql_where=sa.text("billable <> sealed")),
)

# Each row is an immutable fact. The key ensures promise 1: an event id counts once in its account while it is kept.
usage_events = sa.Table(
    "usage_events",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
    # The event's content as sent; a repeat is compared with these columns.
    sa.Column("sent_meter", sa.Text),
    sa.Column("sent_operation", sa.Text),
    sa.Column("sent_quantity", sa.BigInteger),
    sa.Column("sent_level", sa.BigInteger),
    sa.Column("sent_occurred_at", _INSTANT),
    sa.Column("properties", JSONB),
    # The effect: `units` were added to the counter (meter, period_start), `billable` of them beyond the included.
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("period_start", _INSTANT, nullable=False),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("billable", sa.BigInteger, nullable=False),
    sa.Column("occurred_at", _INSTANT, nullable=False),
    sa.Column("recorded_at", _INSTANT, nullable=False),
    sa.Column("retry_attempt", sa.Integer, nullable=False, server_default="0"),
    # Of a correction: the event that it lowers or voids.
    sa.Column("corrects_event_id", sa.Text),
    sa.Column("reservation_id", sa.Text),
    sa.Column("reservation_outcome", sa.Text),
    # Who sent it, in which request: usage events are their own audit log.
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    # The answer's numbers, so that a repeat gets the first answer again.
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
    # True for a gauge's set or change that happened before the gauge's last set.
    sa.Column("superseded", sa.Boolean, nullable=False, server_default=sa.false()),
    # What the event's hold promised: those of its billable units that are charged under the terms of the hold, where
    # these are not those of `plan` and `catalog_version`.
    sa.Column("held_plan", sa.Text),
    sa.Column("held_catalog_version", sa.Integer),
    sa.Column("held_billable", sa.BigInteger),
    sa.CheckConstraint("account_id <> '' AND event_id <> ''", name="named"),
    # For the split of a period by operation and by day. The condition holds for every row, but only a query that
    # repeats it can use this index. So a look-up of an event id cannot use it and read all of the account's events.
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
    # A correction reads its event's earlier corrections, to compute how many units are left.
    sa.Index(
        "ix_usage_events_corrections",
        "account_id",
        "corrects_event_id",
        postgresql_where=sa.text("corrects_event_id IS NOT NULL"),
    ),
)

# A gauge has a single level for each account and meter, without a period.
gauge_levels = sa.Table(
    "gauge_levels",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, primary_key=True),
    sa.Column("level", sa.BigInteger, nullable=False),
    # A set or a change that happened before this instant is stored without effect.
    sa.Column("set_at", _INSTANT),
    # The end of the last period that has a counter, so that its peak counts. The worker opens the next period's
    # counter if no usage is recorded.
    sa.Column("opened_until", _INSTANT, nullable=False),
    sa.CheckConstraint("level >= 0", name="level"),
    sa.Index("ix_gauge_levels_opened_until", "opened_until", postgresql_where=sa.text("level > 0")),
)

# The included quantity of an account that replaces its plan's for a meter. Null: unlimited.
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

# How many checks an account was allowed in its current window; only for plans with a rate limit.
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
    # The counter whose `reserved` includes the units while they are held.
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("period_start", _INSTANT, nullable=False),
    sa.Column("units", sa.BigInteger, nullable=False),
    # The request's content as sent; a repeat of the request id is compared with these columns.
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
    # A repeated request finds its reservation and creates no second reservation.
    sa.UniqueConstraint("account_id", "request_id"),
    sa.CheckConstraint("units > 0", name="units"),
    sa.CheckConstraint("state IN ('held', 'settled', 'released', 'expired')", name="state"),
    sa.CheckConstraint("(state = 'held') = (closed_at IS NULL)", name="closed"),
    # Expired holds must not reduce what is left, so each decision reads the expired holds of its counter.
    sa.Index(
        "ix_reservations_held",
        "account_id",
        "meter",
        "period_start",
        "expires_at",
        postgresql_where=sa.text("state = 'held'"),
    ),
    # For the worker's sweep of expired reservations.
    sa.Index("ix_reservations_expiring", "expires_at", postgresql_where=sa.text("state = 'held'")),
)

# A contiguous slice (from_units, to_units] of a counter's billable total; docs/adr/0007 has its states. A slice may
# grow until it is first sent, and never changes after that.
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
    # The terms that the slice is charged under, and the subscription whose invoices include it (null: none).
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("subscription_id", sa.Text),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("stripe_event_name", sa.Text, nullable=False),
    # The meter event's timestamp, inside the billing period. period_end is that period's end as known at sealing.
    sa.Column("reported_for", _INSTANT, nullable=False),
    sa.Column("period_end", _INSTANT, nullable=False),
    # The meter event's identifier at Stripe. It is replaced only if the event is certainly not at Stripe.
    sa.Column("identifier", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_attempt_at", _INSTANT, nullable=False),
    # Stored before the call to Stripe. Null: the event is certainly not at Stripe.
    sa.Column("first_attempt_at", _INSTANT),
    sa.Column("last_attempt_at", _INSTANT),
    # When Stripe refused the event. An earlier attempt may have arrived; the sum of Stripe's meter tells.
    sa.Column("refused_at", _INSTANT),
    sa.Column("error", sa.Text),
    # Of a slice that is charged as an invoice item: the amount in minor units, and the item unless the amount is 0.
    sa.Column("amount", sa.BigInteger),
    sa.Column("invoice_item_id", sa.Text),
    sa.Column("sealed_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    # Slices of a counter have consecutive numbers and follow each other without gap or overlap.
    sa.UniqueConstraint("account_id", "meter", "period_start", "slice"),
    sa.UniqueConstraint("account_id", "identifier"),
    sa.CheckConstraint("(from_units = to_units) = (state = 'void')", name="slice"),
    sa.CheckConstraint("from_units >= 0 AND to_units >= 0", name="bounds"),
    sa.CheckConstraint("length(identifier) <= 100", name="identifier"),
    # 'sealed': to be sent. 'late': to be charged as an invoice item. 'itemised': the item exists and waits for its own
    # invoice. 'void': corrected to zero before it was sent.
    sa.CheckConstraint("state IN ('sealed', 'late', 'itemised', 'sent', 'invoiced', 'failed', 'void')", name="state"),
    sa.CheckConstraint("(state IN ('sealed', 'late', 'itemised')) = (closed_at IS NULL)", name="closed"),
    sa.CheckConstraint("(state IN ('itemised', 'invoiced')) <= (amount IS NOT NULL)", name="amount"),
    # The slices that the worker has to process.
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
    # Stripe's error reports name a slice by its identifier only.
    sa.Index("ix_usage_reports_identifier", "identifier"),
    # Failed slices are counted every few seconds for the metrics.
    sa.Index("ix_usage_reports_failed", "account_id", postgresql_where=sa.text("state = 'failed'")),
)

usage_alerts = sa.Table(
    "usage_alerts",
    metadata,
    # The key makes an alert be raised exactly once. A new included quantity makes the thresholds count again.
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("meter", sa.Text, primary_key=True),
    sa.Column("period_start", _INSTANT, primary_key=True),
    sa.Column("threshold_percent", sa.Integer, primary_key=True),
    sa.Column("included", sa.BigInteger, primary_key=True),
    # The id that callers use.
    sa.Column("alert_id", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Column("raised_at", _INSTANT, nullable=False),
    sa.Column("acknowledged_at", _INSTANT),
    sa.Column("acknowledged_by", sa.Text),
    sa.CheckConstraint("severity IN ('warning', 'critical', 'exceeded')", name="severity"),
    sa.UniqueConstraint("account_id", "alert_id"),
    # Lists are newest first.
    sa.Index("ix_usage_alerts_raised", "account_id", "raised_at", "threshold_percent", "alert_id"),
)

# Invoices as of the last fetch. No foreign key to subscriptions: an invoice may arrive before its subscription.
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
    # Attempts to collect the payment so far, including failed attempts.
    sa.Column("attempt_count", sa.Integer, nullable=False),
    sa.Column("next_payment_attempt_at", _INSTANT),
    sa.Column("due_at", _INSTANT),
    sa.Column("paid_at", _INSTANT),
    sa.Column("period_start", _INSTANT, nullable=False),
    sa.Column("period_end", _INSTANT, nullable=False),
    # The invoice's first lines, up to a maximum; `more_lines` says whether Stripe has more.
    sa.Column("lines", JSONB, nullable=False),
    sa.Column("more_lines", sa.Boolean, nullable=False),
    sa.Column("hosted_url", sa.Text),
    sa.Column("pdf_url", sa.Text),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("updated_at", _INSTANT, nullable=False),
    # Lists are newest first: for an account, and for all accounts.
    sa.Index("ix_invoices_account_created", "account_id", "created_at", "invoice_id"),
    sa.Index("ix_invoices_created", "created_at", "invoice_id"),
)

# Maps Stripe's customers to accounts.
stripe_customers = sa.Table(
    "stripe_customers",
    metadata,
    sa.Column("customer_id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("linked_at", _INSTANT, nullable=False),
    sa.Column("deleted_at", _INSTANT),
)

# Every price ever created, never deleted: a subscription may use a price whose lookup key now belongs to a newer price.
# Also each price that somebody made at Stripe for a plan's product or for a meter of ours, once a subscription has it.
stripe_prices = sa.Table(
    "stripe_prices",
    metadata,
    sa.Column("price_id", sa.Text, primary_key=True),
    sa.Column("lookup_key", sa.Text, nullable=False),
    sa.Column("product_id", sa.Text, nullable=False),
    sa.Column("catalog_version", sa.Integer, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    # The plan's price for a base item. Empty for a metered item, which has `meter` instead; both are empty for a base
    # price that was made by hand.
    sa.Column("price", sa.Text, nullable=False),
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("pay_as_you_go", sa.Boolean, nullable=False),
    sa.Column("stripe_event_name", sa.Text),
    # Of a metered price: the id of its meter at Stripe. Null until an item with the price was seen.
    sa.Column("stripe_meter_id", sa.Text),
    # False after a newer price took its lookup key, and for a price made by hand, which has no lookup key.
    sa.Column("is_current", sa.Boolean, nullable=False),
    sa.Column("by_hand", sa.Boolean, nullable=False, server_default=sa.false()),
    # Of a price made by hand: the amount in minor units (null: it has tiers), the currency and the interval.
    sa.Column("unit_amount", sa.Numeric),
    sa.Column("currency", sa.Text),
    sa.Column("interval", sa.Text),
    sa.Column("interval_count", sa.Integer),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.CheckConstraint(
        "CASE WHEN by_hand THEN price = '' ELSE (price = '') <> (meter = '') END", name="base_or_metered"
    ),
    # Finds the plan of a product, and the meter of an id.
    sa.Index("ix_stripe_prices_product", "product_id"),
    sa.Index("ix_stripe_prices_meter", "stripe_meter_id"),
    sa.Index("uq_stripe_prices_current", "lookup_key", unique=True, postgresql_where=sa.text("is_current")),
)

# A checkout page. A partial unique index allows an account a single open checkout, also when calls race.
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
    # 'opening': the intent is stored, but Stripe has not answered yet.
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

# A caller's request to change a subscription, by its request id: a repeat gets the same answer, and different content
# is refused. Rows are never deleted.
change_requests = sa.Table(
    "change_requests",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    # The request as sent; a repeat is compared with it.
    sa.Column("content", JSONB, nullable=False),
    # The change that the request meant when it was first seen; repeats carry out exactly this, also if the catalog
    # has changed since.
    sa.Column("target", JSONB, nullable=False),
    # The parts of the answer beside the subscription; null while the request is under way.
    sa.Column("answer", JSONB),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    sa.CheckConstraint("account_id <> '' AND request_id <> ''", name="named"),
)

# Work that the worker has to do on a subscription at Stripe, because of a change in this service. The row is deleted
# when the work is done; a new cause gives the row a new id, so that the work is done again.
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

# The intent of a write at Stripe, stored before the call, and its result, stored after it. A repetition after a crash
# uses the stored idempotency key and the exact stored parameters.
stripe_requests = sa.Table(
    "stripe_requests",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    # What the write is for: 'customer', 'checkout:<id>', ... There is a single intent for each purpose.
    sa.Column("purpose", sa.Text, primary_key=True),
    sa.Column("idempotency_key", sa.Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("params", JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("result", JSONB),
    sa.Column("error", sa.Text),
    # Stripe repeats a 500 for the same key: the object must be looked up before an attempt under a new key.
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
    # The Stripe object that applying the event fetches; a single worker at a time works on an object.
    sa.Column("object_id", sa.Text, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False, server_default=""),
    sa.Column("livemode", sa.Boolean, nullable=False),
    sa.Column("api_version", sa.Text),
    sa.Column("created_at", _INSTANT, nullable=False),
    sa.Column("received_at", _INSTANT, nullable=False),
    # The verified bytes; null long after the event was applied or ignored. The row stays, so that its id counts once.
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
    # Includes failed events: the fetch for a new event of the object applies them too.
    sa.Index("ix_stripe_events_object", "object_id", postgresql_where=sa.text("state IN ('waiting', 'failed')")),
    sa.Index("ix_stripe_events_received", "received_at", "event_id"),
    # Bodies to be deleted.
    sa.Index(
        "ix_stripe_events_bodies",
        "closed_at",
        postgresql_where=sa.text("body IS NOT NULL AND state IN ('applied', 'ignored')"),
    ),
)

# What is wrong at Stripe, or between Stripe and us, and needs a person. A row is opened and closed by whatever notices.
findings = sa.Table(
    "findings",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("finding_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    # The id of the object at Stripe that the finding is about.
    sa.Column("object_id", sa.Text, nullable=False),
    # What is wrong, and what settles it; sentences for an operator.
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("settled_by", sa.Text, nullable=False),
    # The money that is wrong, in minor units; null if no amount is known.
    sa.Column("amount", sa.BigInteger),
    sa.Column("currency", sa.Text),
    sa.Column("since", _INSTANT, nullable=False),
    sa.Column("updated_at", _INSTANT, nullable=False),
    sa.Column("closed_at", _INSTANT),
    # Why it was closed, if a person did.
    sa.Column("note", sa.Text),
    sa.CheckConstraint("(amount IS NULL) = (currency IS NULL)", name="money"),
    # An object has a single open finding of a kind.
    sa.Index(
        "uq_findings_open",
        "account_id",
        "kind",
        "object_id",
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
    ),
)

# The lease of a Stripe object: its holder may apply the object's events. A holder has lost its lease if `fence` is
# greater than the number that it got.
stripe_objects = sa.Table(
    "stripe_objects",
    metadata,
    sa.Column("object_id", sa.Text, primary_key=True),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("leased_until", _INSTANT, nullable=False),
)

# The calls that all workers together may make to Stripe: a row for all endpoints, and for each endpoint with a limit.
stripe_call_limits = sa.Table(
    "stripe_call_limits",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # All calls before this instant are reserved.
    sa.Column("free_at", _INSTANT, nullable=False),
)

# The worker's scheduled comparison with Stripe: a single row, with the pass under way or the last one.
reconcile_passes = sa.Table(
    "reconcile_passes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # The holder of the highest number works on the pass, until `leased_until`.
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("leased_until", _INSTANT, nullable=False),
    # A pass is due: the next one, or the rest of one that has used its reads.
    sa.Column("due_at", _INSTANT, nullable=False),
    sa.Column("began_at", _INSTANT, nullable=False),
    # Null while a pass is under way.
    sa.Column("ended_at", _INSTANT),
    # When the last pass that compared everything began; null before the first.
    sa.Column("full_began_at", _INSTANT),
    sa.Column("is_full", sa.Boolean, nullable=False),
    # Compared is what has changed since then.
    sa.Column("changed_since", _INSTANT, nullable=False),
    sa.Column("objects_compared", sa.Boolean, nullable=False),
    # The last account whose usage was compared.
    sa.Column("after_account", sa.Text, nullable=False),
    # The reads since the pass began, or went on after a pause.
    sa.Column("reads", sa.BigInteger, nullable=False),
)

# A row for each mutation that is not usage, written in the mutation's transaction.
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
    # Operators list the entries of all accounts together, newest first.
    sa.Index("ix_audit_log_at", "at", "account_id", "entry_id"),
)

# Which accounts a login sees that reads the database directly. The service neither reads nor writes this table.
reader_accounts = sa.Table(
    "reader_accounts",
    metadata,
    # The name of the Postgres login.
    sa.Column("login", sa.Text, primary_key=True),
    # Opens this account and the accounts below it, as api/scope.py does for callers; see `readable.account_ids()`.
    sa.Column("account_prefix", sa.Text, primary_key=True),
    # An empty prefix would open every account.
    sa.CheckConstraint("account_prefix <> ''", name="named"),
)
