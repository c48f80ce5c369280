import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from billing_svc.platform.database import embedded, embedded_user
from tests import ports

# A parent that starts a server on the folder and port that it is given, says so, and waits to be killed.
_PARENT = """
import sys, time
from pathlib import Path
from billing_svc.platform.database import embedded, embedded_user
server = embedded.EmbeddedPostgres(Path(sys.argv[1]), int(sys.argv[2]), durable=False)
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="billing-svc-tests-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "data"


def _server(data_dir: Path, port: int | None = None) -> embedded.EmbeddedPostgres:
    return embedded.EmbeddedPostgres(data_dir, port or ports.free_port(), durable=False)


def _connect(url: str) -> psycopg.Connection:
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_data_survives_a_restart_on_another_port(data_dir: Path) -> None:
    with _server(data_dir) as server, _connect(server.start()) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (7)")
    with _server(data_dir) as server, _connect(server.start()) as connection:
        assert connection.execute("SELECT n FROM kept").fetchall() == [(7,)]


def test_starting_twice_and_stopping_twice_is_harmless(data_dir: Path) -> None:
    server = _server(data_dir)
    first = server.start()
    pid = server.pid
    assert (server.start(), server.pid) == (first, pid)
    server.stop()
    server.stop()
    assert pid is not None
    assert not _is_running(pid)


def test_the_service_s_role_is_no_superuser_and_needs_its_password(data_dir: Path) -> None:
    with _server(data_dir) as server:
        url = server.start()
        with _connect(url) as connection:
            query = "SELECT rolsuper, rolcreatedb, current_user FROM pg_roles WHERE rolname = current_user"
            assert connection.execute(query).fetchall() == [(False, True, "billing")]
        wrong = sa.make_url(url).set(password="wrong").render_as_string(hide_password=False)
        with pytest.raises(psycopg.OperationalError):
            _connect(wrong)


def test_only_the_server_s_user_can_read_the_password_and_the_folder(data_dir: Path) -> None:
    with _server(data_dir):
        assert (data_dir / "password").stat().st_mode & 0o777 == 0o600
        assert data_dir.stat().st_mode & 0o777 == 0o700


def test_a_killed_parent_takes_the_server_down_and_the_next_one_finds_the_data(data_dir: Path) -> None:
    port = ports.free_port()
    command = [sys.executable, "-c", _PARENT, str(data_dir), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            url = _url_from(data_dir, port)
            with _connect(url) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        finally:
            parent.kill()
        # At once, while the old server may still be on its way out.
        with _server(data_dir, port) as server, _connect(server.start()) as connection:
            assert connection.execute("SELECT n FROM kept").fetchall() == [(7,)]
            assert not _is_running(pid)


def test_the_end_of_the_thread_that_started_the_server_does_not_end_it(data_dir: Path) -> None:
    server = _server(data_dir)
    try:
        starter = threading.Thread(target=server.start)
        starter.start()
        starter.join()
        assert server.pid is not None
        time.sleep(0.2)  # nothing announces a death that must not happen
        assert _is_running(server.pid)
    finally:
        server.stop()


def test_a_second_process_on_the_folder_is_told_so(data_dir: Path) -> None:
    with _server(data_dir), pytest.raises(embedded.EmbeddedPostgresError, match="in use by another process"):
        _server(data_dir).start()


def test_a_server_that_outlived_its_parent_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _server(data_dir):
        pass
    monkeypatch.setattr(embedded, "_PREDECESSOR_SECONDS_MAX", 0.1)
    cluster = data_dir / "cluster"
    with subprocess.Popen(["sleep", "60"], cwd=cluster) as survivor:
        try:
            (cluster / "postmaster.pid").write_text(f"{survivor.pid}\n")
            with pytest.raises(embedded.EmbeddedPostgresError, match=rf"kill -INT {survivor.pid}"):
                _server(data_dir).start()
        finally:
            survivor.kill()


def test_a_stale_pid_file_that_names_another_program_does_not_stand_in_the_way(data_dir: Path) -> None:
    with _server(data_dir):
        pass
    (data_dir / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    with _server(data_dir) as server:
        assert server.pid is not None


def test_a_dead_server_that_nobody_collected_does_not_stand_in_the_way(data_dir: Path) -> None:
    with _server(data_dir):
        pass
    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        (data_dir / "cluster" / "postmaster.pid").write_text(f"{zombie.pid}\n")
        with _server(data_dir) as server:
            assert server.pid is not None


def test_an_initialisation_that_was_killed_is_begun_anew(data_dir: Path) -> None:
    unfinished = data_dir / "cluster.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with _server(data_dir) as server, _connect(server.start()) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_folder_with_other_things_in_it_is_left_alone(data_dir: Path) -> None:
    (data_dir / "letters").mkdir(parents=True)
    owner = data_dir.stat().st_uid
    with pytest.raises(embedded.EmbeddedPostgresError, match="letters"):
        _server(data_dir).start()
    assert [entry.name for entry in data_dir.iterdir()] == ["letters"]
    assert data_dir.stat().st_uid == owner


def test_a_taken_port_is_named_by_the_server_s_own_words(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(embedded.EmbeddedPostgresError, match=r"could not bind IPv4 address"):
            _server(data_dir, taken.getsockname()[1]).start()
    with _server(data_dir) as server:
        assert server.pid is not None


def test_a_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_WHEEL", "no_such_wheel")
    with pytest.raises(embedded.EmbeddedPostgresError, match="set DATABASE_URL"):
        embedded.find_programs()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_a_folder_that_only_root_can_reach_works_for_root(data_dir: Path) -> None:
    closed = data_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    with _server(closed / "data") as server, _connect(server.start()) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
        search_only = 1 << 2
        assert _capabilities(server) == search_only


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_where_nothing_is_closed_the_server_has_no_right_of_root_s(data_dir: Path) -> None:
    venv_is_open = embedded_user.first_closed_folder((embedded.find_programs(),), 65534) is None
    if not venv_is_open:
        pytest.skip("the programs themselves lie in a closed folder")
    with _server(data_dir) as server:
        assert _capabilities(server) == 0


def _capabilities(server: embedded.EmbeddedPostgres) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.split("CapEff:")[1].split()[0], 16)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_where_root_lacks_that_right_the_closed_folder_is_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = data_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(embedded_user, "permitted_capabilities", lambda: 0)
    with pytest.raises(embedded.EmbeddedPostgresError, match=rf"chmod o\+x {closed}"):
        _server(closed / "data").start()


def _url_from(data_dir: Path, port: int) -> str:
    password = (data_dir / "password").read_text()
    return f"postgresql+psycopg://billing:{password}@127.0.0.1:{port}/billing"


def _environment() -> dict[str, str]:
    source = Path(embedded.__file__).parents[3]
    return os.environ | {"PYTHONPATH": str(source)}
