"""The three roles, tried by logins of their own: what each may do, and which rows it sees."""

import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from billing_svc.platform.database import engine, migrating, privileges, tables

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ACCOUNTS = ["org_1", "org_1/eu", "org_1:de", "org_10", "org_2", "other"]

Login = Callable[..., psycopg.Connection]


def _conninfo(url: str, username: str | None = None, password: str | None = None) -> str:
    parsed = sa.make_url(url).set(drivername="postgresql", username=username, password=password)
    return parsed.render_as_string(hide_password=False)


@pytest.fixture(name="owner")
def owner_connection(database_url: str) -> Iterator[psycopg.Connection]:
    """The login that migrates and owns the tables, with some accounts."""
    # A clone of a database lacks what was said about the database itself.
    migrating.upgrade(database_url)
    with psycopg.connect(_conninfo(database_url), autocommit=True) as connection:
        for account_id in ACCOUNTS:
            connection.execute(
                "INSERT INTO accounts (account_id, created_at, customer_id) VALUES (%s, %s, %s)",
                [account_id, NOW, f"cus_{account_id}"],
            )
            connection.execute(
                "INSERT INTO usage_counters (account_id, meter, period_start, period_end, used, catalog_version, plan,"
                " quantity, pay_as_you_go, included, overridden, updated_at) VALUES"
                " (%s, 'runs', now() - interval '1 day', now() + interval '1 day',"
                "  6, 1, 'free', 1, false, 5, false, now())",
                [account_id],
            )
            connection.execute(
                "INSERT INTO audit_log (account_id, entry_id, at, actor, action, request_id, changes) VALUES"
                " (%s, 'e1', %s, 'caller:test', 'test', '', '{}')",
                [account_id, NOW],
            )
        yield connection


@pytest.fixture(name="login")
def login_factory(owner: psycopg.Connection, database_url: str) -> Iterator[Login]:
    """Make a login with one of the roles, mapped to accounts; returns its connection."""
    opened: list[tuple[str, psycopg.Connection]] = []

    def make(role: str, *prefixes: str) -> psycopg.Connection:
        name, password = f"{role}_{secrets.token_hex(4)}", secrets.token_hex(8)
        owner.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                sql.Identifier(name), sql.Literal(password), sql.Identifier(role)
            )
        )
        for prefix in prefixes:
            owner.execute("INSERT INTO reader_accounts VALUES (%s, %s)", [name, prefix])
        connection = psycopg.connect(_conninfo(database_url, username=name, password=password), autocommit=True)
        opened.append((name, connection))
        return connection

    yield make
    for name, connection in opened:
        connection.close()
        while owner.execute("SELECT FROM pg_stat_activity WHERE usename = %s", [name]).fetchone():
            time.sleep(0.01)
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def _seen(connection: psycopg.Connection, table: str = "accounts") -> list[str]:
    query = sql.SQL("SELECT account_id FROM {} ORDER BY account_id").format(sql.Identifier(*table.split(".")))
    return [str(row[0]) for row in connection.execute(query)]


class TestReaders:
    @pytest.mark.parametrize(
        ("prefixes", "seen"),
        [
            ([], []),
            (["org_1"], ["org_1", "org_1/eu", "org_1:de"]),
            (["org_10"], ["org_10"]),
            (["org_1/"], ["org_1/eu"]),
            (["org_1/eu", "other"], ["org_1/eu", "other"]),
            (["org_"], ["org_1", "org_1/eu", "org_10", "org_1:de", "org_2"]),
            (["org"], []),
            (["or"], []),
            (["%"], []),
            (["org__"], []),
        ],
    )
    def test_a_login_sees_its_accounts_in_tables_and_views(
        self, login: Login, prefixes: list[str], seen: list[str]
    ) -> None:
        reader = login(privileges.READER, *prefixes)
        for table in ("accounts", "usage_counters", "audit_log", "current_usage"):
            assert _seen(reader, table) == seen, table

    def test_two_logins_do_not_see_each_other_s(self, login: Login) -> None:
        first, second = login(privileges.READER, "org_2"), login(privileges.READER, "other")
        assert (_seen(first), _seen(second)) == (["org_2"], ["other"])
        mapped = first.execute("SELECT login, account_prefix FROM reader_accounts").fetchall()
        assert mapped == [(first.info.user, "org_2")]

    def test_readers_see_every_column_but_the_pages_where_invoices_are_paid(self, login: Login) -> None:
        reader = login(privileges.READER, "org_2")
        for table in sorted(privileges.READ):
            with reader.cursor() as cursor:
                cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
                columns = {column.name for column in cursor.description or ()}
            described = {column.name for column in tables.metadata.tables[table].columns}
            assert described - columns == privileges.HIDDEN.get(table, set()), table

    def test_an_account_needs_no_row_of_its_own(self, login: Login, owner: psycopg.Connection) -> None:
        reader = login(privileges.READER, "new")
        owner.execute("INSERT INTO rate_windows VALUES ('new', now(), 1), ('newer', now(), 1)")
        assert (_seen(reader, "rate_windows"), _seen(reader)) == (["new"], [])

    def test_a_bare_name_is_the_view_even_where_a_schema_or_a_role_was_set(self, login: Login) -> None:
        reader = login(privileges.READER, "org_2")
        for statement in ("SET ROLE billing_reader", "SET search_path = pg_catalog, readable"):
            reader.execute(statement)
            assert _seen(reader) == ["org_2"]

    def test_a_table_granted_by_mistake_shows_its_own_accounts_still(
        self, login: Login, owner: psycopg.Connection
    ) -> None:
        reader = login(privileges.READER, "org_1")
        name = sql.Identifier(reader.info.user)
        given = ("USAGE ON SCHEMA public", "SELECT ON accounts, usage_counters")
        for one in given:
            owner.execute(sql.SQL("GRANT {} TO {}").format(sql.SQL(one), name))
        try:
            query = "SELECT account_id FROM public.accounts ORDER BY account_id"
            assert [row[0] for row in reader.execute(query)] == ["org_1", "org_1/eu", "org_1:de"]
            reader.execute("SET row_security = off")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(query)
        finally:
            for one in given:
                owner.execute(sql.SQL("REVOKE {} FROM {}").format(sql.SQL(one), name))

    def test_the_view_tells_how_much_is_used(self, login: Login) -> None:
        reader = login(privileges.READER, "org_2")
        query = "SELECT account_id, meter, used, included, percent, over_quota FROM current_usage"
        assert reader.execute(query).fetchall() == [("org_2", "runs", 6, 5, 120, True)]

    def test_the_view_has_the_holds_of_an_earlier_period_too(self, login: Login, owner: psycopg.Connection) -> None:
        owner.execute(
            "INSERT INTO usage_counters (account_id, meter, period_start, period_end, reserved, catalog_version, plan,"
            " quantity, pay_as_you_go, overridden, updated_at)"
            " SELECT account_id, meter, period_start - interval '10 days', period_start, 4, 1, plan, 1, false, false,"
            "        now() FROM usage_counters WHERE account_id = 'org_2'"
        )
        owner.execute("UPDATE usage_counters SET reserved = 2 WHERE account_id = 'org_2' AND now() < period_end")
        reader = login(privileges.READER, "org_2")
        assert reader.execute("SELECT used, reserved FROM current_usage").fetchall() == [(6, 6)]


class TestAdministrators:
    def test_admins_see_all_and_map_readers(self, login: Login) -> None:
        admin, reader = login(privileges.ADMIN), login(privileges.READER)
        for table in ("accounts", "public.accounts", "readable.accounts", "readable.usage_counters", "current_usage"):
            assert _seen(admin, table) == sorted(ACCOUNTS), table
        admin.execute("INSERT INTO reader_accounts VALUES (%s, 'other')", [reader.info.user])
        assert _seen(reader) == ["other"]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute("UPDATE accounts SET customer_id = NULL")


class TestTheService:
    @pytest.mark.parametrize("table", sorted(privileges.APPENDED))
    @pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {}", "UPDATE {} SET {} = {}"])
    def test_a_row_of_an_append_only_table_stays(self, login: Login, table: str, statement: str) -> None:
        service = login(privileges.SERVICE)
        column = next(iter(tables.metadata.tables[table].columns)).name
        names = [sql.Identifier(name) for name in (table, column, column)][: statement.count("{}")]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(sql.SQL(statement).format(*names))

    def test_the_service_owns_nothing_and_cannot_map_readers(self, login: Login, owner: psycopg.Connection) -> None:
        service = login(privileges.SERVICE)
        assert _seen(service) == sorted(ACCOUNTS)
        for statement in ("DROP TABLE accounts", "CREATE TABLE mine (n int)", "SELECT * FROM reader_accounts"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute(statement)
        owned = "SELECT count(*) FROM pg_class JOIN pg_roles r ON r.oid = relowner WHERE rolname LIKE 'billing\\_%'"
        assert owner.execute(owned).fetchone() == (0,)

    async def test_the_service_acts_as_its_role_whichever_login_it_has(self, database_url: str) -> None:
        pool = engine.create_engine(database_url)
        async with pool.connect() as connection:
            assert await connection.scalar(sa.text("SELECT current_user")) == privileges.SERVICE
        await pool.dispose()


def test_every_table_is_protected(owner: psycopg.Connection) -> None:
    """A new one needs its entry in privileges.py, or nobody sees it."""
    rows = owner.execute(
        "SELECT relname, relrowsecurity FROM pg_class"
        " WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
    )
    assert {name for name, is_protected in rows if not is_protected} == {"alembic_version"}
    views = owner.execute(
        "SELECT relname, reloptions FROM pg_class"
        " WHERE relkind = 'v' AND relnamespace IN ('public'::regnamespace, 'readable'::regnamespace)"
    ).fetchall()
    readable = privileges.READ | {"catalog_versions", "current_usage", "reader_accounts"}
    assert dict(views) == {view: ["security_invoker=true"] for view in readable}


def test_what_runs_with_its_owner_s_rights_is_closed_to_everybody_and_takes_nothing(owner: psycopg.Connection) -> None:
    functions = owner.execute(
        "SELECT proname, pronargs, prosecdef, provolatile, proconfig, has_function_privilege('public', oid, 'EXECUTE')"
        "  FROM pg_proc WHERE prosecdef OR pronamespace = 'readable'::regnamespace"
    ).fetchall()
    assert {name for name, *_ in functions} == privileges.READ | {
        "account_ids",
        "catalog_versions",
        "recent_counters",
        "reader_accounts",
    }
    for name, arguments, by_owner, volatile, settings, public in functions:
        assert (arguments, by_owner, volatile, public) == (0, True, "s", False), name
        assert {"search_path=pg_catalog, pg_temp", "client_min_messages=error"} <= set(settings), name


def test_readers_may_not_name_a_table_nor_have_a_privilege_on_one(owner: psycopg.Connection) -> None:
    query = """
        SELECT relname FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
           AND (has_table_privilege('billing_reader', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES')
                OR has_any_column_privilege('billing_reader', oid, 'SELECT, INSERT, UPDATE, REFERENCES'))
    """
    assert owner.execute(query).fetchall() == []
    for role in ("billing_reader", "public"):
        for right in ("USAGE", "CREATE"):
            row = owner.execute("SELECT has_schema_privilege(%s, 'public', %s)", [role, right]).fetchone()
            assert row == (False,), (role, right)


def test_a_superuser_who_migrates_takes_from_everybody_what_the_owner_cannot(
    owner: psycopg.Connection, database_url: str, postgres_folder: Path
) -> None:
    """And a second time changes nothing. The database's owner keeps what tools of operators need."""
    password = (postgres_folder / "postgres" / "password").read_text()
    superuser = sa.make_url(database_url).set(username="postgres", password=password)
    given = (
        "EXECUTE ON FUNCTION lo_create(oid), pg_stat_get_live_tuples(oid), pg_database_size(oid)",
        "SELECT ON pg_class",
    )
    with psycopg.connect(_conninfo(database_url, "postgres", password), autocommit=True) as connection:
        for one in given:
            connection.execute(sql.SQL("GRANT {} TO PUBLIC").format(sql.SQL(one)))
    for _ in range(2):
        migrating.upgrade(superuser.render_as_string(hide_password=False))
        row = owner.execute("""
            SELECT has_function_privilege('public', 'lo_create(oid)', 'EXECUTE'),
                   has_function_privilege('public', 'pg_stat_get_live_tuples(oid)', 'EXECUTE'),
                   has_function_privilege('public', 'pg_database_size(oid)', 'EXECUTE'),
                   has_column_privilege('public', 'pg_class', 'reltuples', 'SELECT'),
                   has_column_privilege('public', 'pg_class', 'relname', 'SELECT')
        """).fetchone()
        assert row == (False, False, False, False, True)
    assert owner.execute("SELECT n_live_tup >= 0 FROM pg_stat_user_tables WHERE relname = 'accounts'").fetchone()
    assert owner.execute("SELECT * FROM pg_class").fetchone()
    assert owner.execute("SELECT pg_database_size(current_database()) > 0").fetchone() == (True,)


def test_an_account_s_rows_are_found_by_key(owner: psycopg.Connection, login: Login) -> None:
    """However many there are: 20,000 of them fill some 900 pages."""
    many = "SELECT 'many_' || n, now() FROM generate_series(1, 20000) AS n"
    owner.execute(f"INSERT INTO accounts (account_id, created_at) {many}")
    owner.execute(
        "INSERT INTO usage_counters (account_id, meter, period_start, period_end, catalog_version, plan, quantity,"
        " pay_as_you_go, overridden, updated_at)"
        " SELECT account_id, 'runs', now() - interval '1 day', now() + interval '1 day', 1, 'free', 1, false, false,"
        "        now()"
        "   FROM accounts WHERE account_id LIKE 'many%'"
    )
    owner.execute("ANALYZE")
    reader = login(privileges.READER, "many_7", "many_8")
    assert _seen(reader, "current_usage") == ["many_7", "many_8"]
    row = reader.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM current_usage").fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60


def test_what_earlier_versions_granted_is_taken_back(owner: psycopg.Connection, database_url: str) -> None:
    owner.execute("GRANT USAGE ON SCHEMA public TO PUBLIC; GRANT CREATE ON SCHEMA public TO PUBLIC")
    owner.execute("GRANT SELECT ON accounts TO billing_reader; GRANT SELECT (number) ON invoices TO billing_reader")
    migrating.upgrade(database_url)
    test_readers_may_not_name_a_table_nor_have_a_privilege_on_one(owner)


def test_a_login_that_may_not_create_roles_is_told_what_to_do(
    owner: psycopg.Connection, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, password = f"plain_{secrets.token_hex(4)}", secrets.token_hex(8)
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password)))
    owner.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(name)))
    with psycopg.connect(_conninfo(empty_database_url), autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(name)))
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, sql.Identifier(name)))
    try:
        url = sa.make_url(empty_database_url).set(username=name, password=password)
        monkeypatch.setattr(privileges, "SERVICE", "billing_absent")
        with pytest.raises(privileges.RolesMissingError, match="billing_absent"):
            migrating.upgrade(url.render_as_string(hide_password=False))
        # All of it was undone.
        assert migrating.current(empty_database_url) is None
    finally:
        with psycopg.connect(_conninfo(empty_database_url), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
