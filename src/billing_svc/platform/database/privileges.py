"""Who may do what in the database: three group roles, what each may touch, and which rows it sees.

`migrate` brings a database to this after its migrations, each time and only where something is missing, as the owner of
the tables. Everybody else is a member of one of the roles and owns nothing:

- `billing_service`: the server, the worker and the commands. It cannot change what was appended.
- `billing_reader`: people and tools that read the database themselves. A login sees the accounts that
  `reader_accounts` maps it to. What decides is `session_user`, the name that it logged in with, because a session can
  set anything else. It selects from the views of the schema `readable`, which rest on functions, and cannot so much as
  name a table: who may read one learns of the rows that a policy hides, because EXPLAIN counts and estimates them, and
  who may name one learns what the planner thinks of it. See ADR 0014.
- `billing_admin`: sees all, and maps readers to accounts.

What everybody may do by default in a database (PUBLIC) is taken away where it writes or tells of others: here as far as
the owner can, the rest in hardening.py.
"""

import sqlalchemy as sa

from billing_svc.platform.database import engine, hardening, tables

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
# The schema of what readers select from. Its views are named as the tables. The search path passes over a schema that
# one may not use, so a bare name is the view to a reader, and the table to everybody else.
READABLE = "readable"
_SEARCH_PATH = f'"$user", public, {READABLE}'
_READERS = tables.reader_accounts.name
_CATALOGS = tables.catalog_versions.name

# The second line, for a login that somebody grants a table to. Once for a query, and by key.
_IS_MAPPED = f"account_id = ANY (ARRAY(SELECT {READABLE}.account_ids()))"

_MAY_ACT_AS_SERVICE = sa.text(
    "SELECT pg_has_role(current_user, :role,"
    " CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END)"
)
# Where nobody has set another one.
_MAY_SET_SEARCH_PATH = sa.text("""
    SELECT pg_has_role(current_user, datdba, 'USAGE')
       AND NOT EXISTS (SELECT FROM pg_db_role_setting AS s, unnest(setconfig) AS setting
                        WHERE s.setdatabase = d.oid AND s.setrole = 0 AND setting LIKE 'search\\_path=%')
      FROM pg_database AS d
     WHERE datname = current_database()
""")
_IS_SUPERUSER = sa.text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")

# What somebody else has to close: `names_tables` the owner of the schema, if that is not who migrates, and
# `writes_or_watches` a superuser.
LEFT_TO_READERS = f"""
    SELECT (SELECT count(*) FROM pg_auth_members WHERE roleid = CAST('{READER}' AS regrole)
              AND NOT admin_option) AS logins,
           has_schema_privilege('{READER}', 'public', 'USAGE') AS names_tables,
           has_function_privilege('{READER}', 'lo_create(oid)', 'EXECUTE')
           OR has_function_privilege('{READER}', 'pg_stat_get_live_tuples(oid)', 'EXECUTE') AS writes_or_watches
"""  # noqa: S608 - constants of this file


class RolesMissingError(Exception):
    """The roles are not there, and this login may not create them."""


def apply(connection: sa.Connection) -> None:
    """Create what is missing of roles, privileges and policies. Raises RolesMissingError."""
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


def _protect_database(connection: sa.Connection) -> None:
    """Take from PUBLIC what the owner can, and let bare names find what each role reads."""
    database = connection.execute(sa.text("SELECT quote_ident(current_database())")).scalar_one()
    connection.execute(sa.text(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"))
    # CREATE: a database that began with Postgres 14 lets everybody.
    connection.execute(sa.text(f"REVOKE USAGE, CREATE ON SCHEMA public FROM PUBLIC, {READER}"))
    for role in (SERVICE, ADMIN):
        connection.execute(sa.text(f"GRANT USAGE ON SCHEMA public TO {role}"))
    if connection.execute(_MAY_SET_SEARCH_PATH).scalar_one():
        connection.execute(sa.text(f"ALTER DATABASE {database} SET search_path = {_SEARCH_PATH}"))


def _grant(connection: sa.Connection, table: str) -> None:
    # Earlier versions gave it some.
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
        policies[READER] = _IS_MAPPED
    there = sa.text("SELECT policyname FROM pg_policies WHERE schemaname = 'public' AND tablename = :table")
    for role in policies.keys() - set(connection.execute(there, {"table": table}).scalars()):
        connection.execute(sa.text(f"CREATE POLICY {role} ON {table} TO {role} USING ({policies[role]})"))
