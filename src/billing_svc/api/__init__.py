"""The gRPC edge: the only area that uses the generated messages.

May import every area but programs.
"""
