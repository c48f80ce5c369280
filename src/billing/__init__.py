"""The contract of billing-svc for those who call it: `billing.v1`."""
