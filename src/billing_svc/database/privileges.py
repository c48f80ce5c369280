"""Who may do what in the database: three group roles, what each may touch, and which rows it sees.

`migrate` brings a database to this after its migrations, each time and only where something is missing, as the owner of
the tables. Everybody else is a member of one of the roles and owns nothing:

- `billing_service`: the server, the worker and the commands. It cannot change what was appended.
- `billing_reader`: people and tools that read the database themselves. A login sees the accounts that
  `reader_accounts` maps it to. What decides is `session_user`, the name that it logged in with, because a session can
  set anything else.
- `billing_admin`: sees all, and maps readers to accounts.
"""

import sqlalchemy as sa

from billing_svc.database import engine, tables

SERVICE = engine.SERVICE_ROLE
READER = "billing_reader"
ADMIN = "billing_admin"

# Facts and who did what: never changed, by nobody's bug.
APPENDED = frozenset({"audit_log", "usage_events", "catalog_versions"})
DELETED_FROM = frozenset({"account_overrides", "invoices", "subscription_duties"})
# What a reader sees of its accounts: nothing of Stripe's requests and events, and no page that can be paid, because of
# their personal data.
READ = frozenset(
    {
        "account_overrides",
        "accounts",
        "audit_log",
        "gauge_levels",
        "invoices",
        "rate_windows",
        "reservations",
        "subscriptions",
        "usage_alerts",
        "usage_counters",
        "usage_events",
        "usage_reports",
    }
)
# Columns that a reader does not see of those.
HIDDEN = {"invoices": frozenset({"hosted_url", "pdf_url"})}
VIEWS = frozenset({"current_usage"})
_READERS = tables.reader_accounts.name
_CATALOGS = tables.catalog_versions.name

# As callers' prefixes do (scope.py): one opens the account of just that id and those below it, org_1 opens org_1 and
# org_1/eu and not org_10; and if it ends in a separator, whatever begins with it.
_IS_MAPPED = f"""EXISTS (
    SELECT FROM {_READERS} AS mapped
     WHERE mapped.login = session_user
       AND starts_with({{table}}.account_id, mapped.account_prefix)
       AND ({{table}}.account_id = mapped.account_prefix
            OR right(mapped.account_prefix, 1) IN (':', '/', '.', '-', '_', '|')
            OR substr({{table}}.account_id, length(mapped.account_prefix) + 1, 1) IN (':', '/')))"""

_MAY_ACT_AS_SERVICE = sa.text(
    "SELECT pg_has_role(current_user, :role,"
    " CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END)"
)


class RolesMissingError(Exception):
    """The roles are not there, and this login may not create them."""


def apply(connection: sa.Connection) -> None:
    """Create what is missing of roles, privileges and policies. Raises RolesMissingError."""
    _create_roles(connection)
    database = connection.execute(sa.text("SELECT quote_ident(current_database())")).scalar_one()
    connection.execute(sa.text(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"))
    for role in (SERVICE, READER, ADMIN):
        connection.execute(sa.text(f"GRANT USAGE ON SCHEMA public TO {role}"))
    connection.execute(sa.text(f"GRANT SELECT ON alembic_version TO {SERVICE}"))
    for table in tables.metadata.sorted_tables:
        _grant(connection, table)
        _protect(connection, table.name)
    for view in sorted(VIEWS):
        connection.execute(sa.text(f"GRANT SELECT ON {view} TO {READER}, {ADMIN}"))


def _create_roles(connection: sa.Connection) -> None:
    there = set(connection.execute(sa.text("SELECT rolname FROM pg_roles")).scalars())
    missing = [role for role in (SERVICE, READER, ADMIN) if role not in there]
    try:
        with connection.begin_nested():
            for role in missing:
                connection.execute(sa.text(f"CREATE ROLE {role} NOLOGIN"))
            # So that one login may do both where nobody separates them.
            if not connection.execute(_MAY_ACT_AS_SERVICE, {"role": SERVICE}).scalar_one():
                connection.execute(sa.text(f"GRANT {SERVICE} TO CURRENT_USER"))
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":  # insufficient_privilege
            raise
        raise RolesMissingError(
            f"the database needs the roles {SERVICE}, {READER} and {ADMIN}, which this login may not create or grant:"
            f" let an administrator run CREATE ROLE for each, and GRANT {SERVICE} to this login"
        ) from error


def _grant(connection: sa.Connection, described: sa.Table) -> None:
    table = described.name
    if table == _READERS:
        connection.execute(sa.text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {ADMIN}"))
        connection.execute(sa.text(f"GRANT SELECT ON {table} TO {READER}"))
        return
    service = "SELECT, INSERT"
    if table not in APPENDED:
        service += ", UPDATE"
    if table in DELETED_FROM:
        service += ", DELETE"
    connection.execute(sa.text(f"GRANT {service} ON {table} TO {SERVICE}"))
    connection.execute(sa.text(f"GRANT SELECT ON {table} TO {ADMIN}"))
    if table in HIDDEN:
        columns = ", ".join(one.name for one in described.columns if one.name not in HIDDEN[table])
        connection.execute(sa.text(f"GRANT SELECT ({columns}) ON {table} TO {READER}"))
    elif table in READ or table == _CATALOGS:
        connection.execute(sa.text(f"GRANT SELECT ON {table} TO {READER}"))


def _protect(connection: sa.Connection, table: str) -> None:
    """Let each role see its rows only. A lock on the whole table is taken the first time alone."""
    is_protected = sa.text("SELECT relrowsecurity FROM pg_class WHERE oid = CAST(:table AS regclass)")
    if not connection.execute(is_protected, {"table": table}).scalar_one():
        connection.execute(sa.text(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"))
    policies = {ADMIN: "true"}
    if table == _READERS:
        policies[READER] = "login = session_user"
    else:
        policies[SERVICE] = "true"
    if table == _CATALOGS:
        policies[READER] = "true"
    elif table in READ:
        policies[READER] = _IS_MAPPED.format(table=table)
    there = sa.text("SELECT policyname FROM pg_policies WHERE schemaname = 'public' AND tablename = :table")
    for role in policies.keys() - set(connection.execute(there, {"table": table}).scalars()):
        connection.execute(sa.text(f"CREATE POLICY {role} ON {table} TO {role} USING ({policies[role]})"))
