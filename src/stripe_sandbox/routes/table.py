"""The route table of the API. A parameter of Stripe's that its row does not name is refused, not ignored."""

from stripe import params
from stripe.params import billing as billing_params
from stripe.params import checkout as checkout_params

from stripe_sandbox import catalog, search
from stripe_sandbox.api.requests import Route
from stripe_sandbox.customers import checkout, customers
from stripe_sandbox.delivery import events
from stripe_sandbox.meters import meters
from stripe_sandbox.routes import billing_routes, dashboard_routes, money_routes, portal_routes

PAGING = "limit starting_after ending_before"
CUSTOMER = "email name description phone metadata"
PRODUCT = "name active description unit_label statement_descriptor url metadata"
PRICE = "active nickname tax_behavior lookup_key transfer_lookup_key metadata"
SESSION = (
    "mode success_url cancel_url customer customer_email client_reference_id expires_at metadata"
    " payment_method_collection line_items.price line_items.quantity subscription_data.metadata"
    " subscription_data.description subscription_data.trial_period_days subscription_data.trial_end"
    " subscription_data.billing_mode.type subscription_data.trial_settings.end_behavior.missing_payment_method"
)
METER = "/v1/billing/meters"
SESSIONS = "/v1/checkout/sessions"

ROUTES = (
    *billing_routes.ROUTES,
    *portal_routes.ROUTES,
    *dashboard_routes.ROUTES,
    *money_routes.ROUTES,
    Route("POST", "/v1/customers", customers.create, params.CustomerCreateParams, CUSTOMER),
    Route("GET", "/v1/customers", customers.list_all, params.CustomerListParams, f"{PAGING} created email"),
    Route("GET", "/v1/customers/search", search.customers, params.CustomerSearchParams, "query limit page"),
    Route("GET", "/v1/customers/{customer_id}", customers.retrieve, params.CustomerRetrieveParams),
    Route("POST", "/v1/customers/{customer_id}", customers.update, params.CustomerUpdateParams, CUSTOMER),
    Route("DELETE", "/v1/customers/{customer_id}", customers.delete, params.CustomerDeleteParams),
    Route("POST", "/v1/products", catalog.create_product, params.ProductCreateParams, f"id {PRODUCT}"),
    Route("GET", "/v1/products", catalog.list_products, params.ProductListParams, f"{PAGING} created ids active"),
    Route("GET", "/v1/products/{product_id}", catalog.retrieve_product, params.ProductRetrieveParams),
    Route("POST", "/v1/products/{product_id}", catalog.update_product, params.ProductUpdateParams, PRODUCT),
    Route(
        "POST",
        "/v1/prices",
        catalog.create_price,
        params.PriceCreateParams,
        f"{PRICE} product currency unit_amount unit_amount_decimal recurring.interval recurring.interval_count"
        " recurring.usage_type recurring.meter",
    ),
    Route(
        "GET",
        "/v1/prices",
        catalog.list_prices,
        params.PriceListParams,
        f"{PAGING} created active currency product type lookup_keys recurring",
    ),
    Route("GET", "/v1/prices/{price_id}", catalog.retrieve_price, params.PriceRetrieveParams),
    Route("POST", "/v1/prices/{price_id}", catalog.update_price, params.PriceUpdateParams, PRICE),
    Route(
        "POST",
        METER,
        meters.create,
        billing_params.MeterCreateParams,
        "display_name event_name event_time_window default_aggregation customer_mapping value_settings",
    ),
    Route("GET", METER, meters.list_all, billing_params.MeterListParams, f"{PAGING} status"),
    Route("GET", METER + "/{meter_id}", meters.retrieve, billing_params.MeterRetrieveParams),
    Route("POST", METER + "/{meter_id}", meters.update, billing_params.MeterUpdateParams, "display_name"),
    Route("POST", METER + "/{meter_id}/deactivate", meters.deactivate, billing_params.MeterDeactivateParams),
    Route("POST", METER + "/{meter_id}/reactivate", meters.reactivate, billing_params.MeterReactivateParams),
    Route("POST", SESSIONS, checkout.create, checkout_params.SessionCreateParams, SESSION),
    Route(
        "GET",
        SESSIONS,
        checkout.list_all,
        checkout_params.SessionListParams,
        f"{PAGING} created customer subscription status",
    ),
    Route("GET", SESSIONS + "/{session_id}", checkout.retrieve, checkout_params.SessionRetrieveParams),
    Route("POST", SESSIONS + "/{session_id}/expire", checkout.expire, checkout_params.SessionExpireParams),
    Route(
        "GET",
        SESSIONS + "/{session_id}/line_items",
        checkout.list_line_items,
        checkout_params.SessionLineItemListParams,
        "limit",
    ),
    Route("GET", "/v1/events", events.list_all, params.EventListParams, f"{PAGING} created type types"),
    Route("GET", "/v1/events/{event_id}", events.retrieve, params.EventRetrieveParams),
)
