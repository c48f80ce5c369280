"""Generated from proto/billing/v1 by `make generate`. Do not edit."""
