"""`billing-svc dev`: runs every part on this machine, in one terminal."""
