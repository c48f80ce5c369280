"""Findings; prices that were made by hand at Stripe; how a subscription's items differ from the plan as sold.

A server of the version before writes none of it, and reads subscriptions as before.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "findings",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("finding_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("settled_by", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger()),
        sa.Column("currency", sa.Text()),
        sa.Column("since", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.Column("closed_at", _INSTANT),
        sa.Column("note", sa.Text()),
        sa.PrimaryKeyConstraint("account_id", "finding_id", name=op.f("pk_findings")),
        sa.CheckConstraint("(amount IS NULL) = (currency IS NULL)", name=op.f("ck_findings_money")),
    )
    op.create_index(
        "uq_findings_open",
        "findings",
        ["account_id", "kind", "object_id"],
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    for column in (
        sa.Column("custom_price_id", sa.Text()),
        sa.Column("missing_meters", sa.Text(), nullable=False, server_default=""),
        sa.Column("extra_meters", sa.Text(), nullable=False, server_default=""),
    ):
        op.add_column("subscriptions", column)
    op.add_column("stripe_prices", sa.Column("stripe_meter_id", sa.Text()))
    op.add_column("stripe_prices", sa.Column("by_hand", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("stripe_prices", sa.Column("unit_amount", sa.Numeric()))
    op.add_column("stripe_prices", sa.Column("currency", sa.Text()))
    op.add_column("stripe_prices", sa.Column("interval", sa.Text()))
    op.add_column("stripe_prices", sa.Column("interval_count", sa.Integer()))
    op.create_index("ix_stripe_prices_product", "stripe_prices", ["product_id"])
    op.create_index("ix_stripe_prices_meter", "stripe_prices", ["stripe_meter_id"])
    op.drop_constraint(op.f("ck_stripe_prices_base_or_metered"), "stripe_prices")
    op.create_check_constraint(
        op.f("ck_stripe_prices_base_or_metered"),
        "stripe_prices",
        "CASE WHEN by_hand THEN price = '' ELSE (price = '') <> (meter = '') END",
    )
    op.execute(
        "CREATE OR REPLACE VIEW readable.subscriptions WITH (security_invoker) AS"
        " SELECT * FROM readable.subscriptions()"
    )
