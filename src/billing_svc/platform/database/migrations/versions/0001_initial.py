"""Initial schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "account_overrides",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("included", sa.BigInteger()),
        sa.Column("expires_at", _INSTANT),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.Column("set_at", _INSTANT, nullable=False),
        sa.CheckConstraint("included >= 0", name=op.f("ck_account_overrides_included")),
        sa.PrimaryKeyConstraint("account_id", "meter", name=op.f("pk_account_overrides")),
    )
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("customer_id", sa.Text()),
        sa.Column("pay_as_you_go", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("account_id <> ''", name=op.f("ck_accounts_named")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_accounts")),
    )
    op.create_table(
        "audit_log",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("entry_id", sa.Text(), nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("changes", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "entry_id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_account_at", "audit_log", ["account_id", "at", "entry_id"])
    op.create_table(
        "catalog_versions",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_catalog_versions")),
    )
    op.create_table(
        "checkouts",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("checkout_id", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("price", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("success_url", sa.Text(), nullable=False),
        sa.Column("cancel_url", sa.Text(), nullable=False),
        sa.Column("catalog_version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text()),
        sa.Column("url", sa.Text()),
        sa.Column("expires_at", _INSTANT),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("closed_at", _INSTANT),
        sa.CheckConstraint(
            "(state = 'open') <= (session_id IS NOT NULL AND url IS NOT NULL)", name=op.f("ck_checkouts_open")
        ),
        sa.CheckConstraint("state IN ('opening', 'open', 'complete', 'expired')", name=op.f("ck_checkouts_state")),
        sa.PrimaryKeyConstraint("account_id", "checkout_id", name=op.f("pk_checkouts")),
    )
    op.create_index(
        "uq_checkouts_one_open",
        "checkouts",
        ["account_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('opening', 'open')"),
    )
    op.create_table(
        "gauge_levels",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("set_at", _INSTANT),
        sa.Column("opened_until", _INSTANT, nullable=False),
        sa.CheckConstraint("level >= 0", name=op.f("ck_gauge_levels_level")),
        sa.PrimaryKeyConstraint("account_id", "meter", name=op.f("pk_gauge_levels")),
    )
    op.create_index(
        "ix_gauge_levels_opened_until", "gauge_levels", ["opened_until"], postgresql_where=sa.text("level > 0")
    )
    op.create_table(
        "invoices",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text()),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("amount_due", sa.BigInteger(), nullable=False),
        sa.Column("amount_paid", sa.BigInteger(), nullable=False),
        sa.Column("period_start", _INSTANT, nullable=False),
        sa.Column("period_end", _INSTANT, nullable=False),
        sa.Column("lines", JSONB(), nullable=False),
        sa.Column("hosted_url", sa.Text()),
        sa.Column("pdf_url", sa.Text()),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("account_id", "invoice_id", name=op.f("pk_invoices")),
    )
    op.create_table(
        "rate_windows",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("window_start", _INSTANT, nullable=False),
        sa.Column("admitted", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_rate_windows")),
    )
    op.create_table(
        "reservations",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("reservation_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("period_start", _INSTANT, nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("sent_meter", sa.Text(), nullable=False),
        sa.Column("sent_operation", sa.Text(), nullable=False),
        sa.Column("sent_quantity", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("closed_at", _INSTANT),
        sa.Column("event_id", sa.Text()),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.CheckConstraint("(state = 'held') = (closed_at IS NULL)", name=op.f("ck_reservations_closed")),
        sa.CheckConstraint("state IN ('held', 'settled', 'released', 'expired')", name=op.f("ck_reservations_state")),
        sa.CheckConstraint("units > 0", name=op.f("ck_reservations_units")),
        sa.PrimaryKeyConstraint("account_id", "reservation_id", name=op.f("pk_reservations")),
        sa.UniqueConstraint("account_id", "request_id", name=op.f("uq_reservations_account_id_request_id")),
    )
    op.create_index(
        "ix_reservations_expiring", "reservations", ["expires_at"], postgresql_where=sa.text("state = 'held'")
    )
    op.create_index(
        "ix_reservations_held",
        "reservations",
        ["account_id", "meter", "period_start", "expires_at"],
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_table(
        "stripe_customers",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("linked_at", _INSTANT, nullable=False),
        sa.Column("deleted_at", _INSTANT),
        sa.PrimaryKeyConstraint("customer_id", name=op.f("pk_stripe_customers")),
    )
    op.create_table(
        "stripe_events",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), server_default="", nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("api_version", sa.Text()),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("received_at", _INSTANT, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", _INSTANT, nullable=False),
        sa.Column("note", sa.Text()),
        sa.Column("closed_at", _INSTANT),
        sa.CheckConstraint("(state = 'waiting') = (closed_at IS NULL)", name=op.f("ck_stripe_events_closed")),
        sa.CheckConstraint("event_id <> ''", name=op.f("ck_stripe_events_named")),
        sa.CheckConstraint("state IN ('waiting', 'applied', 'ignored', 'failed')", name=op.f("ck_stripe_events_state")),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_stripe_events")),
    )
    op.create_index(
        "ix_stripe_events_object", "stripe_events", ["object_id"], postgresql_where=sa.text("state = 'waiting'")
    )
    op.create_index("ix_stripe_events_received", "stripe_events", ["received_at", "event_id"])
    op.create_index(
        "ix_stripe_events_waiting", "stripe_events", ["next_attempt_at"], postgresql_where=sa.text("state = 'waiting'")
    )
    op.create_table(
        "stripe_objects",
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("object_id", name=op.f("pk_stripe_objects")),
    )
    op.create_table(
        "stripe_prices",
        sa.Column("price_id", sa.Text(), nullable=False),
        sa.Column("lookup_key", sa.Text(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("catalog_version", sa.Integer(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("price", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("pay_as_you_go", sa.Boolean(), nullable=False),
        sa.Column("stripe_event_name", sa.Text()),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.CheckConstraint("(price = '') <> (meter = '')", name=op.f("ck_stripe_prices_base_or_metered")),
        sa.PrimaryKeyConstraint("price_id", name=op.f("pk_stripe_prices")),
    )
    op.create_index(
        "uq_stripe_prices_current", "stripe_prices", ["lookup_key"], unique=True, postgresql_where=sa.text("is_current")
    )
    op.create_table(
        "stripe_requests",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("params", JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("result", JSONB()),
        sa.Column("error", sa.Text()),
        sa.Column("answered_500", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("closed_at", _INSTANT),
        sa.CheckConstraint("(state = 'open') = (closed_at IS NULL)", name=op.f("ck_stripe_requests_closed")),
        sa.CheckConstraint("state IN ('open', 'done', 'refused')", name=op.f("ck_stripe_requests_state")),
        sa.PrimaryKeyConstraint("account_id", "purpose", name=op.f("pk_stripe_requests")),
    )
    op.create_table(
        "subscriptions",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("price", sa.Text(), nullable=False),
        sa.Column("catalog_version", sa.Integer(), nullable=False),
        sa.Column("is_plan", sa.Boolean(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("anchor", _INSTANT, nullable=False),
        sa.Column("billing_period_start", _INSTANT, nullable=False),
        sa.Column("billing_period_end", _INSTANT, nullable=False),
        sa.Column("trial_end", _INSTANT),
        sa.Column("cancel_at_period_end", sa.Boolean(), nullable=False),
        sa.Column("cancel_at", _INSTANT),
        sa.Column("ended_at", _INSTANT),
        sa.Column("effective_from", _INSTANT, nullable=False),
        sa.Column("effective_until", _INSTANT),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.CheckConstraint(
            "effective_until IS NULL OR effective_until >= effective_from", name=op.f("ck_subscriptions_effective")
        ),
        sa.CheckConstraint("quantity >= 0", name=op.f("ck_subscriptions_quantity")),
        sa.PrimaryKeyConstraint("account_id", "subscription_id", name=op.f("pk_subscriptions")),
    )
    op.create_index("ix_subscriptions_effective", "subscriptions", ["account_id", "effective_until"])
    op.create_table(
        "usage_alerts",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("period_start", _INSTANT, nullable=False),
        sa.Column("threshold_percent", sa.Integer(), nullable=False),
        sa.Column("included", sa.BigInteger(), nullable=False),
        sa.Column("alert_id", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("raised_at", _INSTANT, nullable=False),
        sa.Column("acknowledged_at", _INSTANT),
        sa.Column("acknowledged_by", sa.Text()),
        sa.CheckConstraint("severity IN ('warning', 'critical', 'exceeded')", name=op.f("ck_usage_alerts_severity")),
        sa.PrimaryKeyConstraint(
            "account_id", "meter", "period_start", "threshold_percent", "included", name=op.f("pk_usage_alerts")
        ),
        sa.UniqueConstraint("account_id", "alert_id", name=op.f("uq_usage_alerts_account_id_alert_id")),
    )
    op.create_index(
        "ix_usage_alerts_raised", "usage_alerts", ["account_id", "raised_at", "threshold_percent", "alert_id"]
    )
    op.create_table(
        "usage_counters",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("period_start", _INSTANT, nullable=False),
        sa.Column("period_end", _INSTANT, nullable=False),
        sa.Column("used", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("level", sa.BigInteger()),
        sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("billable", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("sealed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("catalog_version", sa.Integer(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text()),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("pay_as_you_go", sa.Boolean(), nullable=False),
        sa.Column("included", sa.BigInteger()),
        sa.Column("overridden", sa.Boolean(), nullable=False),
        sa.Column("exceeded_at", _INSTANT),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.CheckConstraint("billable BETWEEN 0 AND used", name=op.f("ck_usage_counters_billable")),
        sa.CheckConstraint("period_start < period_end", name=op.f("ck_usage_counters_period")),
        sa.CheckConstraint("reserved >= 0", name=op.f("ck_usage_counters_reserved")),
        sa.CheckConstraint("used >= 0", name=op.f("ck_usage_counters_used")),
        sa.PrimaryKeyConstraint("account_id", "meter", "period_start", name=op.f("pk_usage_counters")),
    )
    op.create_index(
        "ix_usage_counters_unsealed", "usage_counters", ["account_id"], postgresql_where=sa.text("billable <> sealed")
    )
    op.create_table(
        "usage_events",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("sent_meter", sa.Text()),
        sa.Column("sent_operation", sa.Text()),
        sa.Column("sent_quantity", sa.BigInteger()),
        sa.Column("sent_level", sa.BigInteger()),
        sa.Column("sent_occurred_at", _INSTANT),
        sa.Column("properties", JSONB()),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("period_start", _INSTANT, nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("billable", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", _INSTANT, nullable=False),
        sa.Column("recorded_at", _INSTANT, nullable=False),
        sa.Column("retry_attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("corrects_event_id", sa.Text()),
        sa.Column("reservation_id", sa.Text()),
        sa.Column("reservation_outcome", sa.Text()),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("period_end", _INSTANT, nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("catalog_version", sa.Integer(), nullable=False),
        sa.Column("used_after", sa.BigInteger(), nullable=False),
        sa.Column("reserved_after", sa.BigInteger(), nullable=False),
        sa.Column("billable_after", sa.BigInteger(), nullable=False),
        sa.Column("remaining_after", sa.BigInteger(), nullable=False),
        sa.Column("included", sa.BigInteger()),
        sa.Column("overridden", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("superseded", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("account_id <> '' AND event_id <> ''", name=op.f("ck_usage_events_named")),
        sa.PrimaryKeyConstraint("account_id", "event_id", name=op.f("pk_usage_events")),
    )
    op.create_index(
        "ix_usage_events_corrections",
        "usage_events",
        ["account_id", "corrects_event_id"],
        postgresql_where=sa.text("corrects_event_id IS NOT NULL"),
    )
    op.create_index(
        "ix_usage_events_period",
        "usage_events",
        ["account_id", "meter", "period_start"],
        postgresql_where=sa.text("account_id <> ''"),
    )
    op.create_table(
        "usage_reports",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("report_id", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("period_start", _INSTANT, nullable=False),
        sa.Column("slice", sa.Integer(), nullable=False),
        sa.Column("from_units", sa.BigInteger(), nullable=False),
        sa.Column("to_units", sa.BigInteger(), nullable=False),
        sa.Column("subscription_id", sa.Text()),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("stripe_event_name", sa.Text(), nullable=False),
        sa.Column("reported_for", _INSTANT, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", _INSTANT),
        sa.Column("first_attempt_at", _INSTANT),
        sa.Column("error", sa.Text()),
        sa.Column("sealed_at", _INSTANT, nullable=False),
        sa.Column("closed_at", _INSTANT),
        sa.CheckConstraint("state IN ('sealed', 'sent', 'invoiced', 'failed')", name=op.f("ck_usage_reports_state")),
        sa.CheckConstraint("from_units <> to_units", name=op.f("ck_usage_reports_slice")),
        sa.CheckConstraint("from_units >= 0 AND to_units >= 0", name=op.f("ck_usage_reports_bounds")),
        sa.PrimaryKeyConstraint("account_id", "report_id", name=op.f("pk_usage_reports")),
        sa.UniqueConstraint(
            "account_id",
            "meter",
            "period_start",
            "slice",
            name=op.f("uq_usage_reports_account_id_meter_period_start_slice"),
        ),
    )
    op.create_index(
        "ix_usage_reports_open",
        "usage_reports",
        ["account_id", "next_attempt_at"],
        postgresql_where=sa.text("state = 'sealed'"),
    )
