"""The whole service as `billing-svc dev` runs it, started once for all tests that only call it."""

import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.end_to_end import dev_process, python_client


@pytest.fixture(scope="session")
def dev() -> Iterator[dev_process.DevProcess]:
    """Run `billing-svc dev` with the default catalog, on its own ports and in its own folder."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-dev-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # started by root, Postgres runs as another user, who needs to pass through
        with dev_process.ended_in_any_case(dev_process.DevProcess(folder / "data")) as process:
            process.start()
            process.await_ready()
            yield process
            process.end(signal.SIGINT)


@pytest.fixture
def client(dev: dev_process.DevProcess) -> Iterator[python_client.Client]:
    with grpc.insecure_channel(dev.grpc, python_client.CHANNEL_OPTIONS) as channel:
        yield python_client.Client(channel)


@pytest.fixture
def account() -> str:
    """Return the id of a new account."""
    return f"org_{uuid.uuid4().hex}"
