import pytest

from tests.billing_svc.sandboxed import World, published_catalog, sandbox, settings, stripe_client, webhook_port, world
from tests.billing_svc.subscriptions import dealing

__all__ = ["published_catalog", "sandbox", "settings", "stripe_client", "webhook_port", "world"]


@pytest.fixture
def deal(world: World) -> dealing.Dealing:
    return dealing.Dealing(world)
