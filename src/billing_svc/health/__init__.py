"""Whether calls should come here."""
