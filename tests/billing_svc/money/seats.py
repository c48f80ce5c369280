"""A catalog with a plan by the seat, monthly and yearly, and its next version with higher prices."""

SEATS = """
catalog: seats
currency: usd
default_plan: free
meters:
  runs: {unit: run, kind: consumable}
plans:
  free: {name: Free, limits: {runs: {included: 5, beyond: deny}}}
  small:
    name: Small
    prices:
      monthly: {amount: "8.00", interval: month, per_seat: true}
      yearly: {amount: "80.00", interval: year, per_seat: true}
    limits: {runs: {included: 10, per_seat: true, beyond: deny}}
  big:
    name: Big
    prices: {monthly: {amount: "16.00", interval: month, per_seat: true}}
    limits: {runs: {included: 20, per_seat: true, beyond: deny}}
"""
RAISED = SEATS.replace('"8.00"', '"9.00"').replace('"80.00"', '"90.00"').replace("included: 10", "included: 15")
YEARLY_RAISED = SEATS.replace('"80.00"', '"90.00"')
