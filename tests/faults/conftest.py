"""The run that a test is a part of, and a separate Postgres for tests that damage it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing_svc.platform.database import embedded
from tests import ports
from tests.faults import runs, summary


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[runs.Run]:
    """Return the run's duration and seed; the summary shows its counts and its seed."""
    plugin = request.config.pluginmanager.get_plugin(summary.NAME)
    tell = runs.nothing if plugin is None else plugin.tell
    made = runs.Run.from_environment(lambda text: tell(f"{request.node.name}: {text}"))
    print(f"{runs.SEED}={made.seed}")  # noqa: T201 - pytest shows it with a failure
    yield made
    for name, value in made.figures.items():
        request.node.user_properties.append((name, value))


@pytest.fixture
def own_postgres() -> Iterator[embedded.EmbeddedPostgres]:
    """Return a server that may be killed: committed data are with the operating system by then."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-tests-") as name:
        Path(name).chmod(0o711)
        with embedded.EmbeddedPostgres(Path(name) / "postgres", ports.free_port(), durable=False) as server:
            yield server
