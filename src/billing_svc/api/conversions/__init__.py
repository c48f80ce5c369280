"""Messages to our types and back: `from_proto_x` and `to_proto_x`, a module for each service's or entity's messages."""
