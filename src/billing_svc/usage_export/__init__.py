"""Usage to Stripe: what the customer is charged is what was recorded, whatever fails; docs/adr/0007 says how."""
