"""The whole service as `billing-svc dev` runs it, once for all tests that only use it."""

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
    """`billing-svc dev` with the default catalog, on ports and in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-dev-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # run by root, Postgres is another user, who passes through
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
    """An account that nobody has heard of."""
    return f"org_{uuid.uuid4().hex}"
