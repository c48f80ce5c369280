"""The sidecar that Stripe calls: verifies the signature, forwards the event over gRPC, answers."""
