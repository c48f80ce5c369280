"""Invoices and the inbox."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Earlier versions wrote no invoices, so the new columns need no defaults.
    for column in (
        sa.Column("attempt_count", sa.Integer(), nullable=False),
        sa.Column("next_payment_attempt_at", _INSTANT),
        sa.Column("due_at", _INSTANT),
        sa.Column("paid_at", _INSTANT),
        sa.Column("more_lines", sa.Boolean(), nullable=False),
    ):
        op.add_column("invoices", column)
    op.create_index("ix_invoices_account_created", "invoices", ["account_id", "created_at", "invoice_id"])
    op.create_index("ix_invoices_created", "invoices", ["created_at", "invoice_id"])
    op.alter_column("stripe_events", "body", nullable=True)
    op.create_check_constraint(
        op.f("ck_stripe_events_body"), "stripe_events", "body IS NOT NULL OR state IN ('applied', 'ignored')"
    )
    op.drop_index("ix_stripe_events_object", "stripe_events")
    op.create_index(
        "ix_stripe_events_object",
        "stripe_events",
        ["object_id"],
        postgresql_where=sa.text("state IN ('waiting', 'failed')"),
    )
    op.create_index(
        "ix_stripe_events_bodies",
        "stripe_events",
        ["closed_at"],
        postgresql_where=sa.text("body IS NOT NULL AND state IN ('applied', 'ignored')"),
    )
