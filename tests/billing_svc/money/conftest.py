import pytest

from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.sandboxed import World, published_catalog, sandbox, settings, stripe_client, webhook_port, world

__all__ = ["published_catalog", "sandbox", "settings", "stripe_client", "webhook_port", "world"]


@pytest.fixture
def ledger(world: World) -> Ledger:
    return Ledger(world)
