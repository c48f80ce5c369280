import pytest

from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions import dealing


@pytest.fixture
def deal(world: World) -> dealing.Dealing:
    return dealing.Dealing(world)
