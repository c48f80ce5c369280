"""What events do: one handler for each kind of object.

`stripe_events.applying` leases the object, hands its events over, and runs what the handler returns in the transaction
that marks them.
"""
