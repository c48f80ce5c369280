import pytest

from tests.billing_svc.sandboxed import World
from tests.billing_svc.usage_export import working


@pytest.fixture
def worker(world: World) -> working.Worker:
    return working.worker_of(world)
