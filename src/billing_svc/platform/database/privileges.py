"""Who may do what in the database: three group roles, the tables that each may use, and the rows that each sees.

`migrate` creates missing roles, privileges and policies after its migrations, as the owner of the tables. Every other
login is a member of one of the roles and owns nothing:

- `billing_service`: the server, the worker and the commands. It cannot change rows of append-only tables.
- `billing_reader`: people and tools that read the database directly. A login sees the accounts that `reader_accounts`
  maps it to. `session_user`, the name of the login, decides, because a session can change all its other settings. A
  reader selects from the views of the schema `readable`, which call functions. It has no access to the schema of the
  tables: with SELECT on a table, EXPLAIN would show counts and estimates of rows that a policy hides, and with USAGE on
  the schema, EXPLAIN would show the planner's estimates of a table. See ADR 0014.
- `billing_admin`: sees all rows, and maps readers to accounts.

PUBLIC's default privileges are revoked if they allow writing or observing other logins: here as far as the owner can
revoke them, the rest in hardening.py.
"""

import sqlalchemy as sa

from billing_svc.platform.database import engine, hardening, tables

SERVICE = engine.SERVICE_ROLE
READER = "billing_reader"
ADMIN = "billing_admin"

# Append-only tables: the service has no privilege to update or delete rows, so no bug of it can change them.
APPENDED = frozenset({"audit_log", "usage_events", "catalog_versions"})
DELETED_FROM = frozenset({"account_overrides", "invoices", "subscription_duties"})
# The tables whose rows of its accounts a reader sees. Stripe's requests and events and the checkout pages are left out
# because of personal data.
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
# Columns of these tables that a reader does not see.
HIDDEN = {"invoices": frozenset({"hosted_url", "pdf_url"})}
# The schema of the readers' views, which have the tables' names. Postgres skips a schema of the search path that a role
# may not use, so an unqualified name means the view to a reader, and the table to every other role.
READABLE = "readable"
_SEARCH_PATH = f'"$user", public, {READABLE}'
_READERS = tables.reader_accounts.name
_CATALOGS = tables.catalog_versions.name

# The policy of readers. It matters only if somebody grants a table to a reader. The array is computed once for each
# query, and rows are found by key.
_IS_MAPPED = f"account_id = ANY (ARRAY(SELECT {READABLE}.account_ids()))"

_MAY_ACT_AS_SERVICE = sa.text(
    "SELECT pg_has_role(current_user, :role,"
    " CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END)"
)
# True if this login owns the database and no search path was set for it.
_MAY_SET_SEARCH_PATH = sa.text("""
    SELECT pg_has_role(current_user, datdba, 'USAGE')
       AND NOT EXISTS (SELECT FROM pg_db_role_setting AS s, unnest(setconfig) AS setting
                        WHERE s.setdatabase = d.oid AND s.setrole = 0 AND setting LIKE 'search\\_path=%')
      FROM pg_database AS d
     WHERE datname = current_database()
""")
_IS_SUPERUSER = sa.text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")

# Privileges that `migrate` could not revoke: the owner of the schema has to revoke `names_tables`, and a superuser
# `writes_or_watches`.
LEFT_TO_READERS = f"""
    SELECT (SELECT count(*) FROM pg_auth_members WHERE roleid = CAST('{READER}' AS regrole)
              AND NOT admin_option) AS logins,
           has_schema_privilege('{READER}', 'public', 'USAGE') AS names_tables,
           has_function_privilege('{READER}', 'lo_create(oid)', 'EXECUTE')
           OR has_function_privilege('{READER}', 'pg_stat_get_live_tuples(oid)', 'EXECUTE') AS writes_or_watches
"""  # noqa: S608 - constants of this file


class RolesMissingError(Exception):
    """Roles are missing, and this login may not create them."""


def apply(connection: sa.Connection) -> None:
    """Create missing roles, privileges and policies. Raises RolesMissingError."""
    _create_roles(connection)
    _protect_database(connection)
    connection.execute(sa.text(f"GRANT SELECT ON alembic_version TO {SERVICE}"))
    for table in tables.metadata.sorted_tables:
        _grant(connection, table.name)
        _protect(connection, table.name)
    connection.execute(sa.text(f"REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {READABLE} FROM PUBLIC"))
    for granted in (
        f"USAGE ON SCHEMA {READABLE}",
        f"EXECUTE ON ALL FUNCTIONS IN SCHEMA {READABLE}",
        f"SELECT ON ALL TABLES IN SCHEMA {READABLE}",
    ):
        connection.execute(sa.text(f"GRANT {granted} TO {READER}, {ADMIN}"))
    if connection.execute(_IS_SUPERUSER).scalar_one():
        connection.execute(sa.text(hardening.STATEMENT))


def _create_roles(connection: sa.Connection) -> None:
    there = set(connection.execute(sa.text("SELECT rolname FROM pg_roles")).scalars())
    missing = [role for role in (SERVICE, READER, ADMIN) if role not in there]
    try:
        with connection.begin_nested():
            for role in missing:
                connection.execute(sa.text(f"CREATE ROLE {role} NOLOGIN"))
            # So that a single login can migrate and serve, if the operator uses no separate logins.
            if not connection.execute(_MAY_ACT_AS_SERVICE, {"role": SERVICE}).scalar_one():
                connection.execute(sa.text(f"GRANT {SERVICE} TO CURRENT_USER"))
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":  # insufficient_privilege
            raise
        raise RolesMissingError(
            f"the database needs the roles {SERVICE}, {READER} and {ADMIN}, which this login may not create or grant:"
            f" let an administrator run CREATE ROLE for each, and GRANT {SERVICE} to this login"
        ) from error


def _protect_database(connection: sa.Connection) -> None:
    """Revoke PUBLIC's privileges as far as the owner can, and set the search path."""
    database = connection.execute(sa.text("SELECT quote_ident(current_database())")).scalar_one()
    connection.execute(sa.text(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"))
    # CREATE: in a database that was created with Postgres 14, PUBLIC has it.
    connection.execute(sa.text(f"REVOKE USAGE, CREATE ON SCHEMA public FROM PUBLIC, {READER}"))
    for role in (SERVICE, ADMIN):
        connection.execute(sa.text(f"GRANT USAGE ON SCHEMA public TO {role}"))
    if connection.execute(_MAY_SET_SEARCH_PATH).scalar_one():
        connection.execute(sa.text(f"ALTER DATABASE {database} SET search_path = {_SEARCH_PATH}"))


def _grant(connection: sa.Connection, table: str) -> None:
    # Earlier versions granted readers some tables.
    connection.execute(sa.text(f"REVOKE ALL ON {table} FROM {READER}"))
    if table == _READERS:
        connection.execute(sa.text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {ADMIN}"))
        return
    service = "SELECT, INSERT"
    if table not in APPENDED:
        service += ", UPDATE"
    if table in DELETED_FROM:
        service += ", DELETE"
    connection.execute(sa.text(f"GRANT {service} ON {table} TO {SERVICE}"))
    connection.execute(sa.text(f"GRANT SELECT ON {table} TO {ADMIN}"))


def _protect(connection: sa.Connection, table: str) -> None:
    """Create the policies that limit each role to its rows. Only the first run locks the whole table."""
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
        policies[READER] = _IS_MAPPED
    there = sa.text("SELECT policyname FROM pg_policies WHERE schemaname = 'public' AND tablename = :table")
    for role in policies.keys() - set(connection.execute(there, {"table": table}).scalars()):
        connection.execute(sa.text(f"CREATE POLICY {role} ON {table} TO {role} USING ({policies[role]})"))
