"""Subscriptions have their pauses: of the collection of their invoices, and of themselves.

All columns may be null, also in rows that a server of the version before writes; the next event or `reconcile` fills
them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    for column in (
        sa.Column("collection_pause", sa.Text()),
        sa.Column("collection_resumes_at", _INSTANT),
        sa.Column("pause_reason", sa.Text()),
        sa.Column("overage_denied_from", _INSTANT),
    ):
        op.add_column("subscriptions", column)
    op.execute(
        "CREATE OR REPLACE VIEW readable.subscriptions WITH (security_invoker) AS "
        "SELECT * FROM readable.subscriptions()"
    )
