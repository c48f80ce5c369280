"""The sidecar that receives Stripe's webhooks: verifies the signature, forwards the event over gRPC, answers."""
