"""A subscription says when it is to be settled, and since when its metered items are there. See ADR 0025."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_INSTANT = postgresql.TIMESTAMP(timezone=True)

# What was to be settled stays so: ended subscriptions by a follow-up, closed billing periods by their own time.
KEEP_SETTLEMENTS = """
    UPDATE subscriptions s
       SET settle_at = waiting.at
      FROM (SELECT account_id, subscription_id, max(at) AS at
              FROM (SELECT account_id, subscription_id, due_at AS at FROM subscription_duties
                     WHERE EXISTS (SELECT FROM subscriptions ended
                                    WHERE ended.account_id = subscription_duties.account_id
                                      AND ended.subscription_id = subscription_duties.subscription_id
                                      AND ended.ended_at IS NOT NULL)
                    UNION ALL
                    SELECT account_id, subscription_id, settle_at FROM subscription_history
                     WHERE settle_at IS NOT NULL) AS each
             GROUP BY account_id, subscription_id) AS waiting
     WHERE (s.account_id, s.subscription_id) = (waiting.account_id, waiting.subscription_id)
"""


def upgrade() -> None:
    op.add_column("subscriptions", sa.Column("items_since", _INSTANT))
    op.add_column("subscriptions", sa.Column("settle_at", _INSTANT))
    op.create_index(
        "ix_subscriptions_settle_at",
        "subscriptions",
        ["settle_at"],
        postgresql_where=sa.text("settle_at IS NOT NULL"),
    )
    op.execute(KEEP_SETTLEMENTS)
    op.drop_index("ix_subscription_history_settle_at", table_name="subscription_history")
    op.drop_column("subscription_history", "settle_at")
    op.execute(
        "CREATE OR REPLACE VIEW readable.subscriptions WITH (security_invoker) AS"
        " SELECT * FROM readable.subscriptions()"
    )
