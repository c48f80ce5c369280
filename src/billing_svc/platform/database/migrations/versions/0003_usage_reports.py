"""Usage reports: how a slice is charged, and its state. The table had no rows before this version."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INSTANT = postgresql.TIMESTAMP(timezone=True)
_OPEN = sa.text("state IN ('sealed', 'late', 'itemised')")


def upgrade() -> None:
    for column in (
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("catalog_version", sa.Integer(), nullable=False),
        sa.Column("period_end", _INSTANT, nullable=False),
        sa.Column("identifier", sa.Text(), nullable=False),
        sa.Column("last_attempt_at", _INSTANT),
        sa.Column("refused_at", _INSTANT),
        sa.Column("amount", sa.BigInteger()),
        sa.Column("invoice_item_id", sa.Text()),
    ):
        op.add_column("usage_reports", column)
    op.alter_column("usage_reports", "next_attempt_at", nullable=False)
    for name in ("slice", "state"):
        op.drop_constraint(op.f(f"ck_usage_reports_{name}"), "usage_reports")
    for name, condition in (
        ("slice", "(from_units = to_units) = (state = 'void')"),
        ("state", "state IN ('sealed', 'late', 'itemised', 'sent', 'invoiced', 'failed', 'void')"),
        ("closed", "(state IN ('sealed', 'late', 'itemised')) = (closed_at IS NULL)"),
        ("amount", "(state IN ('itemised', 'invoiced')) <= (amount IS NOT NULL)"),
        ("identifier", "length(identifier) <= 100"),
    ):
        op.create_check_constraint(op.f(f"ck_usage_reports_{name}"), "usage_reports", condition)
    op.create_unique_constraint(
        op.f("uq_usage_reports_account_id_identifier"), "usage_reports", ["account_id", "identifier"]
    )
    op.drop_index("ix_usage_reports_open", "usage_reports")
    op.create_index("ix_usage_reports_open", "usage_reports", ["next_attempt_at"], postgresql_where=_OPEN)
    op.create_index("ix_usage_reports_account_open", "usage_reports", ["account_id"], postgresql_where=_OPEN)
    op.create_index("ix_usage_reports_identifier", "usage_reports", ["identifier"])
    op.create_index(
        "ix_usage_reports_failed", "usage_reports", ["account_id"], postgresql_where=sa.text("state = 'failed'")
    )
