"""Statements: what an account used in a quota period, the present one or a past one."""
