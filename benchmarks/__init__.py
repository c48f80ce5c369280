"""What the service carries, against a bare echo, `COPY` and hand-written code, in one run on one machine."""
