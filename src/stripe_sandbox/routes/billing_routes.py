"""The route table's rows for subscriptions, invoices and usage; see `table`."""

from stripe import params
from stripe.params import billing as billing_params
from stripe.params.v2 import core as core_params

from stripe_sandbox import search
from stripe_sandbox.api.requests import Route
from stripe_sandbox.invoices import invoice_items, invoices, previews
from stripe_sandbox.meters import meter_errors, meter_events
from stripe_sandbox.subscriptions import pause_requests, schedules, subscription_items, subscriptions

PAGING = "limit starting_after ending_before"
ENDING = "cancellation_details.comment cancellation_details.feedback"
PERIODS = "proration_behavior payment_behavior cancel_at cancel_at_period_end off_session"
CHANGEABLE = (
    f"metadata description default_payment_method {PERIODS} trial_end"
    " trial_settings.end_behavior.missing_payment_method items.price items.quantity items.metadata discounts"
)
CREATION = f"{CHANGEABLE} customer billing_cycle_anchor trial_period_days collection_method billing_mode.type currency"
UPDATE = (
    f"{CHANGEABLE} {ENDING} items.id items.deleted items.clear_usage billing_cycle_anchor.type proration_date"
    " pause_collection"
)
DETAILS = (
    "items.id items.price items.quantity items.deleted items.clear_usage items.metadata proration_behavior"
    " proration_date billing_cycle_anchor.type cancel_at cancel_at_period_end cancel_now metadata trial_end"
)
PHASE = (
    "phases.items.price phases.items.quantity phases.start_date phases.end_date phases.duration phases.trial_end"
    " phases.metadata phases.proration_behavior phases.discounts"
)

DRAFT = "metadata description default_payment_method"

SUBSCRIPTIONS = "/v1/subscriptions"
SUBSCRIPTION = SUBSCRIPTIONS + "/{subscription_id}"
SCHEDULES = "/v1/subscription_schedules"
SCHEDULE = SCHEDULES + "/{schedule_id}"
INVOICES = "/v1/invoices"
INVOICE = INVOICES + "/{invoice_id}"
ITEMS = "/v1/invoiceitems"
ITEM = ITEMS + "/{item_id}"

ROUTES = (
    Route("POST", SUBSCRIPTIONS, subscriptions.create, params.SubscriptionCreateParams, CREATION),
    Route(
        "GET",
        SUBSCRIPTIONS,
        subscriptions.list_all,
        params.SubscriptionListParams,
        f"{PAGING} created customer status",
    ),
    Route("GET", SUBSCRIPTIONS + "/search", search.subscriptions, params.SubscriptionSearchParams, "query limit page"),
    Route(
        "GET",
        "/v1/subscription_items",
        subscription_items.list_all,
        params.SubscriptionItemListParams,
        "subscription limit starting_after",
    ),
    Route("GET", SUBSCRIPTION, subscriptions.retrieve, params.SubscriptionRetrieveParams),
    Route("POST", SUBSCRIPTION, subscriptions.update, params.SubscriptionUpdateParams, UPDATE),
    Route(
        "DELETE",
        SUBSCRIPTION,
        subscriptions.cancel,
        params.SubscriptionCancelParams,
        f"{ENDING} invoice_now prorate",
    ),
    Route(
        "POST",
        SUBSCRIPTION + "/pause",
        pause_requests.pause,
        params.SubscriptionPauseParams,
        "bill_for invoicing_behavior type",
    ),
    Route(
        "POST",
        SUBSCRIPTION + "/resume",
        pause_requests.resume,
        params.SubscriptionResumeParams,
        "billing_cycle_anchor.type payment_behavior proration_behavior",
    ),
    Route(
        "POST",
        SCHEDULES,
        schedules.create,
        params.SubscriptionScheduleCreateParams,
        "from_subscription",
    ),
    Route("GET", SCHEDULES, schedules.list_all, params.SubscriptionScheduleListParams, f"{PAGING} created customer"),
    Route("GET", SCHEDULE, schedules.retrieve, params.SubscriptionScheduleRetrieveParams),
    Route(
        "POST",
        SCHEDULE,
        schedules.update,
        params.SubscriptionScheduleUpdateParams,
        f"end_behavior metadata {PHASE}",
    ),
    Route("POST", SCHEDULE + "/release", schedules.release, params.SubscriptionScheduleReleaseParams),
    Route(
        "POST", SCHEDULE + "/cancel", schedules.cancel, params.SubscriptionScheduleCancelParams, "invoice_now prorate"
    ),
    Route(
        "POST",
        INVOICES + "/create_preview",
        previews.create,
        params.InvoiceCreatePreviewParams,
        "customer subscription preview_mode discounts "
        + " ".join(f"subscription_details.{name}" for name in DETAILS.split()),
    ),
    Route(
        "POST",
        INVOICES,
        invoices.create,
        params.InvoiceCreateParams,
        "customer subscription auto_advance collection_method currency description metadata"
        " pending_invoice_items_behavior default_payment_method from_invoice",
    ),
    Route(
        "GET",
        INVOICES,
        invoices.list_all,
        params.InvoiceListParams,
        f"{PAGING} created customer subscription status collection_method",
    ),
    Route("GET", INVOICE, invoices.retrieve, params.InvoiceRetrieveParams),
    Route("POST", INVOICE, invoices.update, params.InvoiceUpdateParams, f"{DRAFT} auto_advance"),
    Route("POST", INVOICE + "/add_lines", invoices.add_lines, params.InvoiceAddLinesParams, "lines.invoice_item"),
    Route("DELETE", INVOICE, invoices.delete, params.InvoiceDeleteParams),
    Route("GET", INVOICE + "/lines", invoices.list_lines, params.InvoiceLineItemListParams, "limit starting_after"),
    Route("POST", INVOICE + "/finalize", invoices.finalize, params.InvoiceFinalizeInvoiceParams, "auto_advance"),
    Route("POST", INVOICE + "/pay", invoices.pay, params.InvoicePayParams, "paid_out_of_band off_session"),
    Route("POST", INVOICE + "/void", invoices.void, params.InvoiceVoidInvoiceParams),
    Route(
        "POST",
        ITEMS,
        invoice_items.create,
        params.InvoiceItemCreateParams,
        "customer amount currency description metadata subscription invoice period quantity pricing.price",
    ),
    Route(
        "GET",
        ITEMS,
        invoice_items.list_all,
        params.InvoiceItemListParams,
        f"{PAGING} created customer invoice pending",
    ),
    Route("GET", ITEM, invoice_items.retrieve, params.InvoiceItemRetrieveParams),
    Route("DELETE", ITEM, invoice_items.delete, params.InvoiceItemDeleteParams),
    Route(
        "POST",
        "/v1/billing/meter_events",
        meter_events.create,
        billing_params.MeterEventCreateParams,
        "event_name payload identifier timestamp",
    ),
    Route(
        "POST",
        "/v1/billing/meter_event_adjustments",
        meter_events.adjust,
        billing_params.MeterEventAdjustmentCreateParams,
        "event_name type cancel.identifier",
    ),
    Route(
        "GET",
        "/v1/billing/meters/{meter_id}/event_summaries",
        meter_events.list_summaries,
        billing_params.MeterEventSummaryListParams,
        "customer start_time end_time value_grouping_window limit starting_after",
    ),
    Route("GET", "/v2/core/events/{event_id}", meter_errors.retrieve, core_params.EventRetrieveParams),
)
