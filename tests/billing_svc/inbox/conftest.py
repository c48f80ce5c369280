from tests.billing_svc.sandboxed import published_catalog, sandbox, settings, stripe_client, webhook_port, world

__all__ = ["published_catalog", "sandbox", "settings", "stripe_client", "webhook_port", "world"]
