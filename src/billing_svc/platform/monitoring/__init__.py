"""What operators see of a running process: its metrics, liveness and readiness."""
