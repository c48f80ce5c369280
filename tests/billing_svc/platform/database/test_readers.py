"""A reader against twins: three databases that differ in other accounts alone, and a login that tries to tell which.

`alone` has nothing but the reader's own accounts; `crowded` has others beside them, and `other` as many with other ids
and numbers. Whatever the reader runs has to come to the same in all: rows, errors, messages, plans and estimates.
"""

# ruff: noqa: S608 - all of it is hostile

import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from billing_svc.platform.database import embedded, migrating, privileges, tables
from tests import databases

LOGIN, PASSWORD = "hostile_reader", "hostile"
OWN = ["org_1", "org_1/eu", "org_1:de"]
# As near to the reader's own as can be, and what a prefix without its separator would open.
OTHERS = ["org_10", "org_1.5", "org_1-b", "org_1_x", "org_1|y", "org_", "org_2", "org", "ORG_1", "org_1 ", "org_0", "z"]
HIDDEN = ["org_X0", "org_Z.5", "orgs", "xorg_1", "or", "ORG_X", "a", "b", "c", "d", "e", "f"]
# Occurs in what no reader may see, and nowhere else.
MARK = "payable"


class Twins(NamedTuple):
    """The URL of each database, for its owner."""

    alone: str
    crowded: str
    other: str


class Seen(NamedTuple):
    """All that a statement came to."""

    results: tuple[Any, ...]
    error: tuple[str | None, ...] | None
    messages: tuple[str, ...]


@pytest.fixture(scope="module", name="twins")
def twin_databases(postgres: embedded.EmbeddedPostgres, template_database: str) -> Iterator[Twins]:
    administrator = sa.make_url(postgres.start())
    urls = {name: administrator.set(database=f"twin_{name}") for name in Twins._fields}
    with _connect(administrator) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE billing_reader").format(
                sql.Identifier(LOGIN), sql.Literal(PASSWORD)
            )
        )
        for url in urls.values():
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(url.database or ""), sql.Identifier(template_database)
                )
            )
        rendered = {name: url.render_as_string(hide_password=False) for name, url in urls.items()}
        for name, others, units in (("alone", [], 0), ("crowded", OTHERS, 3), ("other", HIDDEN, 70_000)):
            _fill(rendered[name], others, units)
        yield Twins(**rendered)
        while connection.execute("SELECT FROM pg_stat_activity WHERE usename = %s", [LOGIN]).fetchone():
            time.sleep(0.01)
        for url in urls.values():
            databases.drop(connection, url.database or "")
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(LOGIN)))


def _connect(url: sa.URL | str) -> psycopg.Connection:
    conninfo = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    # Not prepared by themselves: `DISCARD ALL` ends what is.
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


def _as_reader(url: str) -> psycopg.Connection:
    return _connect(sa.make_url(url).set(username=LOGIN, password=PASSWORD))


def _fill(url: str, others: list[str], units: int) -> None:
    # A clone of a database lacks what was said about the database itself.
    migrating.upgrade(url)
    with _connect(url) as connection:
        connection.execute("INSERT INTO reader_accounts VALUES (%s, 'org_1'), (%s, 'nobody_yet')", [LOGIN, LOGIN])
        for number, account_id in enumerate(others):
            connection.execute("INSERT INTO reader_accounts VALUES (%s, %s)", [f"reader_{number}", account_id])
        for table in sorted(privileges.READ):
            for account_id in OWN:
                _insert(connection, tables.metadata.tables[table], account_id, 5)
            for account_id in others:
                _insert(connection, tables.metadata.tables[table], account_id, units)
        # So that the planner has something to tell.
        connection.execute("ANALYZE")


def _insert(connection: psycopg.Connection, table: sa.Table, account_id: str, units: int) -> None:
    """Insert a row that fits the table's checks, whatever its columns are."""
    given = {
        "account_id": account_id,
        "period_start": "2000-01-01",
        "period_end": "2100-01-01",
        "state": "sent" if table.name == "usage_reports" else "settled",
        "closed_at": "2026-01-01",
        "severity": "warning",
        "hosted_url": MARK,
        "pdf_url": MARK,
        "billable": 0,
        "superfluous": False,
        "from_units": 0,
        "to_units": units + 1,
        "units": units + 1,
        "effective_until": None,
        **dict.fromkeys(("pending_plan", "pending_price", "pending_quantity", "pending_at")),
    }
    row = {column.name: given.get(column.name, _value(column, account_id, units)) for column in table.columns}
    names, values = sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join(map(sql.Literal, row.values()))
    connection.execute(sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(sql.Identifier(table.name), names, values))


def _value(column: sa.Column[Any], account_id: str, units: int) -> object:
    match column.type:
        case sa.Integer() | sa.Numeric():
            return units
        case sa.Boolean():
            return True
        case sa.DateTime():
            return "2026-01-01"
        case sa.Text():
            return f"of {account_id}"
        case _:
            return "{}"


def _seen(connection: psycopg.Connection, statement: str) -> Seen:
    """Run it, as a session that starts anew, and return whatever comes back."""
    messages: list[str] = []

    def keep(diagnostic: psycopg.errors.Diagnostic) -> None:
        messages.append(f"{diagnostic.severity} {diagnostic.message_primary} {diagnostic.message_detail}")

    connection.add_notice_handler(keep)
    results: list[Any] = []
    error = None
    try:
        with connection.cursor() as cursor:
            if "TO STDOUT" in statement:
                with cursor.copy(statement.encode()) as copied:
                    results.append([bytes(block) for block in copied])
            else:
                cursor.execute(statement.encode())
                more: bool | None = True
                while more:
                    columns = [column.name for column in cursor.description or ()]
                    results.append((cursor.statusmessage, columns, cursor.fetchall() if cursor.description else []))
                    more = cursor.nextset()
    except psycopg.Error as raised:
        told = raised.diag
        error = (
            raised.sqlstate,
            told.message_primary,
            told.message_detail,
            told.message_hint,
            told.context,
            told.schema_name,
            told.table_name,
            told.column_name,
            told.constraint_name,
        )
    finally:
        connection.remove_notice_handler(keep)
        if not connection.closed:
            connection.rollback()
            connection.execute("DISCARD ALL")
    return Seen(tuple(results), error, tuple(messages))


@pytest.fixture(scope="module", name="readers")
def readers_of_twins(twins: Twins) -> Iterator[list[psycopg.Connection]]:
    """The reader's session with each: what they ran before is the same in all."""
    with _as_reader(twins.alone) as alone, _as_reader(twins.crowded) as crowded, _as_reader(twins.other) as other:
        yield [alone, crowded, other]


def _in_each(readers: list[psycopg.Connection], statement: str) -> list[str]:
    """Return what it comes to in each, without the database's own name and how long it took."""
    found = []
    for connection in readers:
        seen = repr(_seen(connection, statement)).replace(connection.info.dbname, "twin")
        found.append(re.sub(r"\d+\.\d\d s\b", "0.00 s", seen))
    return found


# Where the rows may be had, and where they should not.
PLACES = ("accounts", "public.accounts", "readable.accounts()", "public.usage_counters", "readable.usage_counters")
EXPLAIN = "EXPLAIN (ANALYZE, VERBOSE, COSTS, BUFFERS OFF, WAL, SETTINGS, TIMING OFF, SUMMARY OFF) "
GUESSES = (
    # Counting and estimating what is filtered out.
    "SELECT * FROM {place} WHERE account_id = 'org_10'",
    "SELECT * FROM {place} WHERE account_id LIKE 'org%'",
    "SELECT count(*), min(account_id), max(account_id) FROM {place}",
    EXPLAIN + "SELECT * FROM {place}",
    EXPLAIN + "SELECT * FROM {place} WHERE account_id = 'org_10'",
    EXPLAIN + "SELECT * FROM {place} WHERE account_id <> 'org_1'",
    EXPLAIN + "SELECT * FROM {place} WHERE account_id >= 'org_1' AND account_id < 'org_11'",
    "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_nestloop = off; "
    + EXPLAIN
    + "TABLE {place}",
    "EXPLAIN (GENERIC_PLAN) SELECT * FROM {place} WHERE account_id = $1",
    "PREPARE guess (text) AS SELECT * FROM {place} WHERE account_id = $1; EXPLAIN EXECUTE guess ('org_10')",
    # Expressions that would tell of a row if they were run on it.
    "SELECT * FROM {place} WHERE 1 / (account_id <> 'org_10')::int > 0",
    "SELECT * FROM {place} WHERE CAST(account_id AS integer) > 0",
    "SELECT * FROM {place} WHERE CASE WHEN account_id > 'org_1/z' THEN repeat('x', 1000) || '' = '' END",
    "SELECT CAST(concat(account_id, {place_alias}) AS integer) FROM {place} AS {place_alias}",
    "SELECT * FROM {place} ORDER BY CAST(account_id AS integer)",
    "SELECT * FROM {place} WHERE account_id ~ '(.*)*x' AND length(account_id) / 0 = 1",
    "SELECT xmin, ctid, * FROM {place}",
    "SELECT * FROM {place} TABLESAMPLE SYSTEM (100)",
    # Around the query.
    "COPY (SELECT * FROM {place}) TO STDOUT",
    "COPY (SELECT account_id FROM {place} WHERE account_id = 'org_10') TO STDOUT",
    "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM {place}; COMMIT; FETCH ALL FROM c",
    "DO $$ BEGIN PERFORM * FROM {place} WHERE account_id = 'org_10'; IF found THEN RAISE 'there'; END IF; END $$",
    "DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM {place} LOOP RAISE NOTICE '%', r; END LOOP; END $$",
    "SELECT query_to_xml('SELECT account_id FROM {place}', true, true, '')",
    "SELECT * FROM ts_stat('SELECT to_tsvector(account_id) FROM {place}')",
    "WITH w AS (SELECT * FROM {place}) SELECT * FROM w WHERE account_id = 'org_10'",
    "SELECT * FROM {place} FULL JOIN (VALUES ('org_10')) AS v (a) ON account_id = a",
    "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM {place}; COMMIT",
    "BEGIN; LOCK TABLE {place} IN ACCESS SHARE MODE; COMMIT",
    # What a session may set.
    "SET ROLE billing_reader; SELECT session_user, current_user, account_id FROM {place}",
    "SET row_security = off; SELECT * FROM {place}",
    "SET search_path = pg_temp, readable, public; SELECT * FROM {place}",
    "SELECT set_config('role', 'billing_reader', false); SELECT account_id FROM {place}",
    "SET SESSION AUTHORIZATION DEFAULT; SELECT account_id FROM {place}",
    "SET application_name = 'billing-svc'; SET app.account_id = 'org_10'; SELECT account_id FROM {place}",
    "SET transform_null_equals = on; SET standard_conforming_strings = off; SELECT account_id FROM {place}",
    "SET session_replication_role = replica; SELECT account_id FROM {place}",
    # Plans and traces as messages.
    "SET debug_print_plan = on; SET client_min_messages = log; SELECT * FROM {place}",
    "SET debug_print_parse = on; SET client_min_messages = debug5; SELECT account_id FROM {place}",
    "SET debug_print_rewritten = on; SET client_min_messages = debug5; SELECT account_id FROM {place}",
    "SET trace_sort = on; SET client_min_messages = log; SELECT account_id FROM {place} ORDER BY 1",
    "SET cpu_tuple_cost = 1e9; SET random_page_cost = 1e9; SET enable_indexscan = off; " + EXPLAIN + "TABLE {place}",
)
CATALOGS = (
    "SELECT * FROM pg_stats",
    "SELECT * FROM pg_stats_ext",
    "SELECT * FROM pg_statistic",
    "SELECT * FROM pg_statistic_ext_data",
    "SELECT relname, reltuples, relpages FROM pg_class WHERE relname = 'accounts'",
    "SELECT * FROM pg_class",
    "SELECT pg_relation_size('accounts'), pg_total_relation_size('accounts')",
    "SELECT pg_table_size('accounts'), pg_indexes_size('accounts')",
    "SELECT pg_database_size(current_database())",
    "SELECT pg_stat_get_live_tuples('accounts'::regclass), pg_stat_get_tuples_inserted('accounts'::regclass)",
    "SELECT * FROM pg_stat_user_tables",
    "SELECT * FROM pg_stat_user_indexes",
    "SELECT * FROM pg_statio_user_tables",
    "SELECT * FROM pg_stat_database",
    "SELECT * FROM pg_stat_activity",
    "SELECT * FROM pg_locks",
    "SELECT * FROM pg_sequences",
    "SELECT lastval()",
    "SELECT currval('accounts')",
    "SELECT * FROM pg_largeobject_metadata",
    "SELECT * FROM pg_prepared_xacts",
    "SELECT * FROM pg_cursors",
    "SELECT * FROM pg_policies",
    "SELECT * FROM pg_description WHERE objoid >= 16384",
    "SELECT * FROM pg_views WHERE schemaname IN ('public', 'readable')",
    "SELECT proname, prosrc, proacl FROM pg_proc WHERE pronamespace = 'readable'::regnamespace",
    "SELECT * FROM information_schema.tables WHERE table_schema IN ('public', 'readable')",
    "SELECT * FROM information_schema.columns WHERE table_schema IN ('public', 'readable')",
    "SELECT * FROM information_schema.role_table_grants",
    "SELECT * FROM pg_listening_channels()",
    "SELECT relname FROM pg_class WHERE has_table_privilege(oid, 'SELECT') AND relkind = 'r' AND oid >= 16384",
    "SELECT table_to_xml('accounts', true, true, '')",
    "SELECT schema_to_xml('public', true, true, '')",
    "SELECT database_to_xml(true, true, '')",
    "SELECT schema_to_xml('readable', true, true, '')",
    "SELECT currtid2('accounts', '(0,1)')",
    "SELECT pg_read_file('/etc/hostname')",
    "SELECT pg_ls_dir('.')",
    "SELECT * FROM reader_accounts",
    "SELECT * FROM readable.reader_accounts",
    EXPLAIN + "SELECT * FROM reader_accounts WHERE account_prefix = 'org_10'",
    EXPLAIN + "SELECT * FROM readable.reader_accounts WHERE account_prefix = 'org_10'",
    EXPLAIN + "SELECT * FROM readable.account_ids() AS ids WHERE ids = 'org_10'",
    EXPLAIN + "SELECT * FROM current_usage WHERE account_id = 'org_10'",
    EXPLAIN + "SELECT * FROM readable.accounts JOIN readable.usage_counters USING (account_id)",
    "SET debug_print_plan = on; SET client_min_messages = debug5; SELECT * FROM current_usage",
    "SELECT * FROM catalog_versions",
    "SELECT * FROM readable.catalog_versions",
    "SELECT * FROM alembic_version",
    "SELECT * FROM stripe_events",
    "SELECT * FROM stripe_customers",
    "SELECT * FROM stripe_requests",
    "SELECT * FROM checkouts",
    "SELECT * FROM change_requests",
    "SELECT hosted_url FROM invoices",
    "SELECT hosted_url FROM readable.invoices",
    "SELECT pdf_url FROM readable.invoices()",
    *(f"SELECT * FROM readable.{table}" for table in sorted(privileges.READ | {"current_usage"})),
    *(f"SELECT * FROM public.{table}" for table in sorted(privileges.READ | {"current_usage"})),
)
# Each has to fail, or to leave no trace.
WRITES = (
    "SET ROLE billing_service",
    "SET ROLE billing_admin",
    "SET ROLE billing",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION billing",
    "SELECT set_config('role', 'billing_admin', false)",
    "SELECT set_config('session_authorization', 'billing', false)",
    f"INSERT INTO reader_accounts VALUES ('{LOGIN}', 'org_10')",
    f"INSERT INTO reader_accounts VALUES ('{LOGIN}', 'org_1') ON CONFLICT DO NOTHING",
    f"INSERT INTO readable.reader_accounts VALUES ('{LOGIN}', 'org_10')",
    "UPDATE readable.reader_accounts SET account_prefix = 'org_10'",
    "UPDATE reader_accounts SET account_prefix = 'org_10'",
    "DELETE FROM reader_accounts",
    "TRUNCATE reader_accounts",
    "INSERT INTO accounts (account_id, created_at) VALUES ('org_10', now())",
    "INSERT INTO accounts (account_id, created_at) VALUES ('org_10', now()) ON CONFLICT DO NOTHING",
    "INSERT INTO readable.accounts (account_id, created_at) VALUES ('org_10', now())",
    "UPDATE readable.accounts SET customer_id = NULL",
    "UPDATE accounts SET customer_id = NULL",
    "DELETE FROM readable.usage_events",
    "DELETE FROM audit_log",
    "MERGE INTO accounts USING (VALUES ('org_10')) AS v (a) ON account_id = a WHEN MATCHED THEN DELETE",
    "SELECT * FROM accounts FOR UPDATE",
    "SELECT * FROM readable.accounts FOR UPDATE",
    "LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE",
    "COPY accounts FROM '/dev/null'",
    "COPY accounts TO '/tmp/accounts'",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "CREATE TABLE mine (n int)",
    "CREATE TABLE readable.mine (n int)",
    "CREATE TEMPORARY TABLE mine (n int)",
    "CREATE TEMPORARY VIEW mine AS SELECT 1",
    "SELECT 1 AS n INTO TEMPORARY mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION readable.account_ids() RETURNS SETOF text LANGUAGE sql AS $$SELECT 'org_10'$$",
    "CREATE OPERATOR pg_temp.~>=~ (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE SCHEMA mine",
    "CREATE SEQUENCE mine",
    "CREATE TYPE mine AS (n int)",
    "CREATE EXTENSION dblink",
    "CREATE STATISTICS mine ON account_id, customer_id FROM accounts",
    "CREATE INDEX ON accounts (customer_id)",
    "CREATE PUBLICATION mine FOR ALL TABLES",
    "CREATE ROLE mine",
    f"GRANT billing_admin TO {LOGIN}",
    f"GRANT billing_reader TO {LOGIN} WITH ADMIN OPTION",
    "GRANT SELECT ON readable.accounts TO PUBLIC",
    "REVOKE SELECT ON readable.accounts FROM billing_admin",
    f"ALTER ROLE {LOGIN} SUPERUSER",
    f"ALTER ROLE {LOGIN} CREATEDB",
    "ALTER TABLE accounts DISABLE ROW LEVEL SECURITY",
    "ALTER VIEW readable.accounts RESET (security_invoker)",
    "ALTER FUNCTION readable.account_ids() SECURITY INVOKER",
    "ALTER FUNCTION readable.account_ids() RESET ALL",
    "ALTER SYSTEM SET fsync = off",
    "ALTER DATABASE postgres SET search_path = pg_temp",
    "DROP POLICY billing_reader ON accounts",
    "DROP VIEW readable.accounts",
    "DROP FUNCTION readable.account_ids()",
    "COMMENT ON TABLE accounts IS 'mine'",
    "ANALYZE accounts",
    "VACUUM accounts",
    "REFRESH MATERIALIZED VIEW accounts",
    "CLUSTER accounts",
    "REINDEX TABLE accounts",
    "CHECKPOINT",
    "LOAD 'auto_explain'",
    "SELECT pg_stat_reset()",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_import('/etc/hostname')",
    "SELECT pg_logical_emit_message(true, 'mine', 'x')",
    "SELECT pg_create_restore_point('mine')",
    "SELECT pg_switch_wal()",
    "SELECT pg_reload_conf()",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
    "BEGIN; PREPARE TRANSACTION 'mine'",
    "DO LANGUAGE plpgsql $$ BEGIN EXECUTE 'UPDATE accounts SET customer_id = NULL'; END $$",
    "SET default_transaction_read_only = off; UPDATE accounts SET customer_id = NULL",
)


def _places(statement: str) -> Iterator[str]:
    if "{place}" not in statement:
        yield statement
        return
    for place in PLACES:
        yield statement.format(place=place, place_alias="t")


@pytest.mark.parametrize("statement", GUESSES + CATALOGS + WRITES)
def test_nothing_tells_the_twins_apart(readers: list[psycopg.Connection], statement: str) -> None:
    for one in _places(statement):
        alone, crowded, other = _in_each(readers, one)
        assert alone == crowded == other, one
        assert MARK not in crowded, one


def test_even_the_pages_that_are_read_tell_no_account(readers: list[psycopg.Connection]) -> None:
    """EXPLAIN counts pages, and so tells how much there is in all; of equally much, it tells nothing."""
    for place in PLACES:
        statement = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) SELECT * FROM {place}"
        _in_each(readers, statement)  # what is read from the disk the first time
        _, crowded, other = _in_each(readers, statement)
        assert crowded == other, place


@pytest.mark.parametrize("statement", WRITES)
def test_readers_can_write_nothing(readers: list[psycopg.Connection], statement: str) -> None:
    for reader in readers:
        seen = _seen(reader, statement)
        # A GRANT of what one does not have warns, and does nothing.
        assert seen.error or any(message.startswith("WARNING") for message in seen.messages)


def test_not_a_byte_of_a_dump_has_changed(twins: Twins) -> None:
    before = _dump(twins.crowded)
    with _as_reader(twins.crowded) as reader:
        for statement in (one for each in (*GUESSES, *CATALOGS, *WRITES) for one in _places(each)):
            _seen(reader, statement)
    assert _dump(twins.crowded) == before


def _dump(url: str) -> str:
    conninfo = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(embedded.find_programs() / "pg_dump"), "--restrict-key=same", conninfo]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
