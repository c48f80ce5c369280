"""The route table's rows for the portal and the cards; see `table`."""

from stripe import params
from stripe.params import billing_portal as portal_params

from stripe_sandbox.api.requests import Route
from stripe_sandbox.customers import payment_methods, portal

PAGING = "limit starting_after ending_before"
CONFIGURATION = (
    "business_profile default_return_url login_page.enabled metadata name features.customer_update"
    " features.invoice_history features.payment_method_update.enabled features.subscription_cancel"
    " features.subscription_update"
)
CONFIGURATIONS = "/v1/billing_portal/configurations"

ROUTES = (
    Route("POST", CONFIGURATIONS, portal.create_configuration, portal_params.ConfigurationCreateParams, CONFIGURATION),
    Route(
        "GET",
        CONFIGURATIONS,
        portal.list_configurations,
        portal_params.ConfigurationListParams,
        f"{PAGING} active is_default",
    ),
    Route(
        "GET",
        CONFIGURATIONS + "/{configuration_id}",
        portal.retrieve_configuration,
        portal_params.ConfigurationRetrieveParams,
    ),
    Route(
        "POST",
        CONFIGURATIONS + "/{configuration_id}",
        portal.update_configuration,
        portal_params.ConfigurationUpdateParams,
        f"{CONFIGURATION} active",
    ),
    Route(
        "POST",
        "/v1/billing_portal/sessions",
        portal.create_session,
        portal_params.SessionCreateParams,
        "customer configuration return_url locale flow_data.type flow_data.after_completion"
        " flow_data.subscription_cancel.subscription",
    ),
    Route(
        "GET",
        "/v1/payment_methods",
        payment_methods.list_all,
        params.PaymentMethodListParams,
        f"{PAGING} customer type",
    ),
    Route(
        "GET",
        "/v1/payment_methods/{payment_method_id}",
        payment_methods.retrieve,
        params.PaymentMethodRetrieveParams,
    ),
    Route(
        "POST",
        "/v1/payment_methods/{payment_method_id}/attach",
        payment_methods.attach_by_name,
        params.PaymentMethodAttachParams,
        "customer",
    ),
    Route(
        "POST",
        "/v1/payment_methods/{payment_method_id}/detach",
        payment_methods.detach,
        params.PaymentMethodDetachParams,
    ),
    Route(
        "GET",
        "/v1/customers/{customer_id}/payment_methods",
        payment_methods.list_of_customer,
        params.CustomerPaymentMethodListParams,
        f"{PAGING} type",
    ),
)
