"""The past stretches of subscriptions, whose periods were moved. See ADR 0019.

Moves from before are not known: a subscription begins with a single stretch.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_INSTANT = postgresql.TIMESTAMP(timezone=True)

# Before its anchor, a subscription's months were counted back from the anchor; now they are counted from the beginning
# of the stretch. So that a quota period under way does not change, its start becomes the start of the present stretch.
# A trial of a month or less needs nothing.
KEEP_PERIODS_BEFORE_ANCHORS = """
    WITH counted AS (
        SELECT s.account_id, s.subscription_id, max(s.anchor - make_interval(months => n)) AS start
          FROM subscriptions s
         CROSS JOIN generate_series(1, 60) AS n
         WHERE s.anchor > now() AND s.effective_from < s.anchor - interval '1 month'
           AND s.anchor - make_interval(months => n) > s.effective_from
           AND s.anchor - make_interval(months => n) <= now()
           AND (s.effective_until IS NULL OR s.effective_until > now())
         GROUP BY s.account_id, s.subscription_id
    ), moved AS (
        UPDATE subscriptions s
           SET moved_at = counted.start
          FROM counted
         WHERE (s.account_id, s.subscription_id) = (counted.account_id, counted.subscription_id)
        RETURNING s.*
    ), kept AS (
        INSERT INTO subscription_history (
               account_id, subscription_id, since, effective_until, effective_from, anchor, trial_end,
               billing_period_start, status, is_plan, plan, catalog_version, quantity, overage_denied_from)
        SELECT account_id, subscription_id, effective_from, moved_at, effective_from, anchor, trial_end,
               billing_period_start, status, is_plan, plan, catalog_version, quantity, overage_denied_from
          FROM moved
        RETURNING account_id, effective_until
    )
    UPDATE accounts a
       SET history_until = kept.until
      FROM (SELECT account_id, max(effective_until) AS until FROM kept GROUP BY account_id) AS kept
     WHERE a.account_id = kept.account_id
"""


def upgrade() -> None:
    op.create_table(
        "subscription_history",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("since", _INSTANT, nullable=False),
        sa.Column("effective_until", _INSTANT, nullable=False),
        sa.Column("effective_from", _INSTANT, nullable=False),
        sa.Column("anchor", _INSTANT, nullable=False),
        sa.Column("trial_end", _INSTANT),
        sa.Column("billing_period_start", _INSTANT, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("is_plan", sa.Boolean(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("catalog_version", sa.Integer(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("overage_denied_from", _INSTANT),
        sa.Column("settle_at", _INSTANT),
        sa.CheckConstraint("since < effective_until", name=op.f("ck_subscription_history_stretch")),
        sa.PrimaryKeyConstraint("account_id", "subscription_id", "since", name=op.f("pk_subscription_history")),
    )
    op.create_index(
        "ix_subscription_history_settle_at",
        "subscription_history",
        ["settle_at"],
        postgresql_where=sa.text("settle_at IS NOT NULL"),
    )
    op.add_column("subscriptions", sa.Column("moved_at", _INSTANT))
    op.add_column("accounts", sa.Column("history_until", _INSTANT))
    op.execute(KEEP_PERIODS_BEFORE_ANCHORS)
    for table in ("accounts", "subscriptions"):
        op.execute(
            f"CREATE OR REPLACE VIEW readable.{table} WITH (security_invoker) AS SELECT * FROM readable.{table}()"  # noqa: S608 - names of this file
        )
