import pytest

from tests.billing_svc.sandboxed import World, published_catalog, sandbox, settings, stripe_client, webhook_port, world
from tests.money.ledger import Ledger

__all__ = ["published_catalog", "sandbox", "settings", "stripe_client", "webhook_port", "world"]


@pytest.fixture
def ledger(world: World) -> Ledger:
    return Ledger(world)
