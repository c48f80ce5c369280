"""The gRPC edge: the only place that touches the generated messages. May import every area but programs."""
