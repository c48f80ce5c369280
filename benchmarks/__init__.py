"""The service's throughput, compared with a bare echo, `COPY` and hand-written code, in the same run on one machine."""
