"""The servicers: each RPC converts its request, runs its work in a transaction, and converts the result."""
