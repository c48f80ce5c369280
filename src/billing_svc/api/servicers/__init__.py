"""The servicers: gRPC in, one transaction, gRPC out."""
