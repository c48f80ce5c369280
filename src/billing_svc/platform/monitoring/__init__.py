"""What operators see of a running process: its metrics, and whether it lives and is ready."""
