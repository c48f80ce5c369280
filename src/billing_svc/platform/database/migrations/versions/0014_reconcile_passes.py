"""The worker's scheduled comparison with Stripe, so that it goes on where it stopped."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "reconcile_passes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", _INSTANT, nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.Column("began_at", _INSTANT, nullable=False),
        sa.Column("ended_at", _INSTANT, nullable=True),
        sa.Column("full_began_at", _INSTANT, nullable=True),
        sa.Column("is_full", sa.Boolean(), nullable=False),
        sa.Column("changed_since", _INSTANT, nullable=False),
        sa.Column("objects_compared", sa.Boolean(), nullable=False),
        sa.Column("after_account", sa.Text(), nullable=False),
        sa.Column("reads", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_reconcile_passes")),
    )
