"""Run by Alembic. `migrating.py` passes the connection and controls its transaction."""

import sqlalchemy as sa
from alembic import context

from billing_svc.platform.database import tables

connection = context.config.attributes["connection"]
if not isinstance(connection, sa.Connection):
    raise TypeError("migrations must be run by billing_svc.platform.database.migrating, which passes the connection")

context.configure(connection=connection, target_metadata=tables.metadata, compare_server_default=True)
context.run_migrations()
