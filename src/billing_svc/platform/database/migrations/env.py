"""What Alembic runs: `migrating.py` gives it the connection, and owns its transaction."""

import sqlalchemy as sa
from alembic import context

from billing_svc.platform.database import tables

connection = context.config.attributes["connection"]
if not isinstance(connection, sa.Connection):
    raise TypeError("migrations run through billing_svc.platform.database.migrating, which gives them their connection")

context.configure(connection=connection, target_metadata=tables.metadata, compare_server_default=True)
context.run_migrations()
