"""Every RPC of the contract, and a message that is none of any of them."""

from google.protobuf import descriptor_pool

from billing_svc.api.servicers import services

METHODS = [
    f"/{service.full_name}/{method.name}"
    for service in map(descriptor_pool.Default().FindServiceByName, services.SERVICES)
    for method in service.methods
]
# No message of any type: its first field would have number 15 and an unknown wire type.
MALFORMED = b"\x7f\xff\xff"
