"""`billing-svc dev`: every part on this machine, in one terminal."""
