"""The route table's rows for what people do in the dashboard: single items, invoices, links; see `table`."""

from stripe import params

from stripe_sandbox.api.requests import Route
from stripe_sandbox.customers import payment_links
from stripe_sandbox.invoices import invoice_items, invoices
from stripe_sandbox.subscriptions import item_requests

PAGING = "limit starting_after ending_before"
CHANGE = "proration_behavior proration_date payment_behavior"
SUBSCRIPTION_ITEMS = "/v1/subscription_items"
SUBSCRIPTION_ITEM = SUBSCRIPTION_ITEMS + "/{item_id}"
LINKS = "/v1/payment_links"
LINK = LINKS + "/{link_id}"

ROUTES = (
    Route(
        "POST",
        SUBSCRIPTION_ITEMS,
        item_requests.create,
        params.SubscriptionItemCreateParams,
        f"subscription price quantity metadata {CHANGE}",
    ),
    Route("GET", SUBSCRIPTION_ITEM, item_requests.retrieve, params.SubscriptionItemRetrieveParams),
    Route(
        "POST",
        SUBSCRIPTION_ITEM,
        item_requests.update,
        params.SubscriptionItemUpdateParams,
        f"price quantity metadata {CHANGE}",
    ),
    Route(
        "DELETE",
        SUBSCRIPTION_ITEM,
        item_requests.delete,
        params.SubscriptionItemDeleteParams,
        f"{CHANGE} clear_usage",
    ),
    Route(
        "POST",
        "/v1/invoiceitems/{item_id}",
        invoice_items.update,
        params.InvoiceItemUpdateParams,
        "amount description metadata",
    ),
    Route(
        "POST",
        "/v1/invoices/{invoice_id}/mark_uncollectible",
        invoices.mark_uncollectible,
        params.InvoiceMarkUncollectibleParams,
    ),
    Route(
        "POST",
        LINKS,
        payment_links.create,
        params.PaymentLinkCreateParams,
        "line_items.price line_items.quantity metadata inactive_message payment_method_collection after_completion"
        " subscription_data.metadata subscription_data.description subscription_data.trial_period_days"
        " subscription_data.trial_settings.end_behavior.missing_payment_method",
    ),
    Route("GET", LINKS, payment_links.list_all, params.PaymentLinkListParams, f"{PAGING} active"),
    Route("GET", LINK, payment_links.retrieve, params.PaymentLinkRetrieveParams),
    Route(
        "POST",
        LINK,
        payment_links.update,
        params.PaymentLinkUpdateParams,
        "active inactive_message metadata subscription_data.metadata",
    ),
)
