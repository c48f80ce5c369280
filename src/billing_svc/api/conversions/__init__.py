"""Conversions between messages and our types: `from_proto_x` and `to_proto_x`, a module for each service or entity."""
