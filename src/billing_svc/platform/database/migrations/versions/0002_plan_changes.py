"""Pay-as-you-go and plan changes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("accounts", sa.Column("pay_as_you_go_under", sa.Text()))
    op.drop_column("accounts", "pay_as_you_go")
    op.add_column("subscriptions", sa.Column("checkout_id", sa.Text()))
    op.add_column("subscriptions", sa.Column("superfluous", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("subscriptions", sa.Column("schedule_id", sa.Text()))
    op.add_column("subscriptions", sa.Column("pending_plan", sa.Text()))
    op.add_column("subscriptions", sa.Column("pending_price", sa.Text()))
    op.add_column("subscriptions", sa.Column("pending_quantity", sa.BigInteger()))
    op.add_column("subscriptions", sa.Column("pending_at", _INSTANT))
    op.create_check_constraint(
        op.f("ck_subscriptions_superfluous"), "subscriptions", "NOT superfluous OR effective_until = effective_from"
    )
    op.create_check_constraint(
        op.f("ck_subscriptions_pending"),
        "subscriptions",
        "num_nulls(pending_plan, pending_price, pending_quantity, pending_at) IN (0, 4)",
    )
    op.create_table(
        "change_requests",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("content", JSONB(), nullable=False),
        sa.Column("target", JSONB(), nullable=False),
        sa.Column("answer", JSONB()),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("closed_at", _INSTANT),
        sa.CheckConstraint("account_id <> '' AND request_id <> ''", name=op.f("ck_change_requests_named")),
        sa.PrimaryKeyConstraint("account_id", "request_id", name=op.f("pk_change_requests")),
    )
    op.create_table(
        "subscription_duties",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("duty_id", sa.Text(), nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("note", sa.Text()),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("account_id", "subscription_id", name=op.f("pk_subscription_duties")),
    )
    op.create_index("ix_subscription_duties_due_at", "subscription_duties", ["due_at"])
