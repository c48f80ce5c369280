"""What a plan and usage would cost."""
