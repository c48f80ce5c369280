"""The run of which a test is a part, and a Postgres of its own for those that harm it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing_svc.platform.database import embedded
from tests import ports
from tests.faults import runs, summary


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[runs.Run]:
    """How long, and from which seed. Its figures and its seed stand in the summary."""
    plugin = request.config.pluginmanager.get_plugin(summary.NAME)
    tell = runs.nothing if plugin is None else plugin.tell
    made = runs.Run.from_environment(lambda text: tell(f"{request.node.name}: {text}"))
    print(f"{runs.SEED}={made.seed}")  # noqa: T201 - pytest shows it with a failure
    yield made
    for name, value in made.figures.items():
        request.node.user_properties.append((name, value))


@pytest.fixture
def own_postgres() -> Iterator[embedded.EmbeddedPostgres]:
    """A server that may be killed: what it committed is in the operating system's hands by then."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-tests-") as name:
        Path(name).chmod(0o711)
        with embedded.EmbeddedPostgres(Path(name) / "postgres", ports.free_port(), durable=False) as server:
            yield server
