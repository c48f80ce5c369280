"""Usage summaries: what an account used in a quota period, the present period or a past period."""
