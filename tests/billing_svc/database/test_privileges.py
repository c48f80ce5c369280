"""The three roles, tried by logins of their own: what each may do, and which rows it sees."""

import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from billing_svc.database import engine, migrating, privileges, tables

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
    query = sql.SQL("SELECT account_id FROM {} ORDER BY account_id").format(sql.Identifier(table))
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
        assert len(first.execute("SELECT * FROM reader_accounts").fetchall()) == 1

    def test_an_invoice_is_seen_without_the_page_where_it_is_paid(self, login: Login) -> None:
        reader = login(privileges.READER, "org_2")
        assert _seen(reader, "invoices") == []
        for column in ("hosted_url", "pdf_url", "*"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(sql.SQL("SELECT {} FROM invoices").format(sql.SQL(column)))

    @pytest.mark.parametrize(
        "statement",
        [
            "SET ROLE billing_service",
            "SET ROLE billing_admin",
            "SET SESSION AUTHORIZATION billing",
            "INSERT INTO reader_accounts VALUES (session_user, 'other')",
            "UPDATE reader_accounts SET account_prefix = 'other'",
            "DELETE FROM reader_accounts",
            "TRUNCATE reader_accounts",
            "SELECT * FROM stripe_events",
            "SELECT * FROM stripe_requests",
            "SELECT * FROM stripe_customers",
            "SELECT * FROM checkouts",
            "UPDATE accounts SET customer_id = NULL",
            "INSERT INTO accounts (account_id, created_at) VALUES ('x', now())",
            "DELETE FROM audit_log",
            "SELECT * FROM accounts FOR UPDATE",
            "CREATE TABLE mine (n int)",
            "CREATE TEMPORARY TABLE mine (n int)",
            "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE VIEW mine AS SELECT 1",
            "CREATE SCHEMA mine",
            "ALTER TABLE accounts DISABLE ROW LEVEL SECURITY",
            "DROP POLICY billing_reader ON accounts",
            "SELECT lo_create(0)",
            "SELECT lo_from_bytea(0, 'x')",
            "COPY accounts TO '/tmp/accounts'",
            "SET row_security = off; SELECT * FROM accounts",
        ],
    )
    def test_nothing_else_is_allowed(self, login: Login, statement: str) -> None:
        reader = login(privileges.READER, "org_1")
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)):
            reader.execute(statement)
        reader.execute("RESET ALL")
        assert _seen(reader) == ["org_1", "org_1/eu", "org_1:de"]

    @pytest.mark.parametrize(
        "statement",
        [
            "SET ROLE billing_reader",
            "SET application_name = 'billing'",
            "SET search_path = pg_catalog, public",
            "SET app.account_id = 'other'",
            "SET session_replication_role = DEFAULT",
        ],
    )
    def test_what_a_session_can_set_decides_nothing(self, login: Login, statement: str) -> None:
        reader = login(privileges.READER, "org_2")
        try:
            reader.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return
        assert _seen(reader) == ["org_2"]

    def test_an_expression_of_its_own_does_not_run_on_others_rows(self, login: Login) -> None:
        reader = login(privileges.READER, "org_2")
        # Were it evaluated before the policy, it would fail on another account's row.
        row = reader.execute("SELECT count(*) FROM accounts WHERE 1 / (account_id = 'org_2')::int = 1").fetchone()
        assert row == (1,)

    def test_the_view_tells_how_much_is_used(self, login: Login) -> None:
        reader = login(privileges.READER, "org_2")
        query = "SELECT account_id, meter, used, included, percent, over_quota FROM current_usage"
        assert reader.execute(query).fetchall() == [("org_2", "runs", 6, 5, 120, True)]


class TestAdministrators:
    def test_they_see_all_and_map_readers(self, login: Login) -> None:
        admin, reader = login(privileges.ADMIN), login(privileges.READER)
        assert _seen(admin) == sorted(ACCOUNTS)
        admin.execute("INSERT INTO reader_accounts VALUES (%s, 'other')", [reader.info.user])
        assert _seen(reader) == ["other"]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute("UPDATE accounts SET customer_id = NULL")


class TestTheService:
    @pytest.mark.parametrize("table", sorted(privileges.APPENDED))
    @pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {}", "UPDATE {} SET {} = {}"])
    def test_what_was_appended_stays(self, login: Login, table: str, statement: str) -> None:
        service = login(privileges.SERVICE)
        column = next(iter(tables.metadata.tables[table].columns)).name
        names = [sql.Identifier(name) for name in (table, column, column)][: statement.count("{}")]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(sql.SQL(statement).format(*names))

    def test_it_owns_nothing_and_cannot_map_readers(self, login: Login, owner: psycopg.Connection) -> None:
        service = login(privileges.SERVICE)
        assert _seen(service) == sorted(ACCOUNTS)
        for statement in ("DROP TABLE accounts", "CREATE TABLE mine (n int)", "SELECT * FROM reader_accounts"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute(statement)
        owned = "SELECT count(*) FROM pg_class JOIN pg_roles r ON r.oid = relowner WHERE rolname LIKE 'billing\\_%'"
        assert owner.execute(owned).fetchone() == (0,)

    async def test_it_acts_as_the_role_whichever_login_it_has(self, database_url: str) -> None:
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
        "SELECT relname, reloptions FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
    )
    assert dict(views.fetchall()) == {view: ["security_invoker=true"] for view in privileges.VIEWS}


def test_a_login_that_may_not_create_roles_is_told_what_to_do(
    owner: psycopg.Connection, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, password = f"plain_{secrets.token_hex(4)}", secrets.token_hex(8)
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password)))
    owner.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(name)))
    with psycopg.connect(_conninfo(empty_database_url), autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(name)))
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
