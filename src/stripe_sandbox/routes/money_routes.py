"""The route table's rows for coupons, discounts, credit notes and payments; see `table`."""

from stripe import params

from stripe_sandbox.api.requests import Route
from stripe_sandbox.invoices import coupons, credit_notes, discounts
from stripe_sandbox.payments import disputes, payments, refunds

PAGING = "limit starting_after ending_before"
COUPONS = "/v1/coupons"
COUPON = COUPONS + "/{coupon_id}"
CODES = "/v1/promotion_codes"
CODE = CODES + "/{code_id}"

NOTES = "/v1/credit_notes"
NOTE = NOTES + "/{note_id}"

ROUTES = (
    Route(
        "POST",
        NOTES,
        credit_notes.create,
        params.CreditNoteCreateParams,
        "invoice amount credit_amount refund_amount out_of_band_amount memo metadata reason lines.type lines.amount"
        " lines.description lines.invoice_line_item lines.quantity lines.unit_amount lines.unit_amount_decimal",
    ),
    Route("GET", NOTES, credit_notes.list_all, params.CreditNoteListParams, f"{PAGING} created customer invoice"),
    Route("GET", NOTE, credit_notes.retrieve, params.CreditNoteRetrieveParams),
    Route("GET", NOTE + "/lines", credit_notes.list_lines, params.CreditNoteLineItemListParams, "limit"),
    Route("POST", NOTE + "/void", credit_notes.void, params.CreditNoteVoidCreditNoteParams),
    Route(
        "POST",
        "/v1/refunds",
        refunds.create,
        params.RefundCreateParams,
        "charge payment_intent amount reason metadata",
    ),
    Route("GET", "/v1/refunds", refunds.list_all, params.RefundListParams, f"{PAGING} created charge payment_intent"),
    Route("GET", "/v1/refunds/{refund_id}", refunds.retrieve, params.RefundRetrieveParams),
    Route(
        "GET", "/v1/disputes", disputes.list_all, params.DisputeListParams, f"{PAGING} created charge payment_intent"
    ),
    Route("GET", "/v1/disputes/{dispute_id}", disputes.retrieve, params.DisputeRetrieveParams),
    Route("POST", "/v1/disputes/{dispute_id}/close", disputes.close, params.DisputeCloseParams),
    Route(
        "GET",
        "/v1/payment_intents",
        payments.list_intents,
        params.PaymentIntentListParams,
        f"{PAGING} created customer",
    ),
    Route("GET", "/v1/payment_intents/{intent_id}", payments.retrieve_intent, params.PaymentIntentRetrieveParams),
    Route(
        "GET",
        "/v1/charges",
        payments.list_charges,
        params.ChargeListParams,
        f"{PAGING} created customer payment_intent",
    ),
    Route("GET", "/v1/charges/{charge_id}", payments.retrieve_charge, params.ChargeRetrieveParams),
    Route(
        "GET",
        "/v1/invoice_payments",
        payments.list_all,
        params.InvoicePaymentListParams,
        f"{PAGING} invoice status payment.type payment.payment_intent",
    ),
    Route("GET", "/v1/invoice_payments/{payment_id}", payments.retrieve, params.InvoicePaymentRetrieveParams),
    Route(
        "POST",
        COUPONS,
        coupons.create,
        params.CouponCreateParams,
        "id name metadata percent_off amount_off currency duration duration_in_months max_redemptions redeem_by",
    ),
    Route("GET", COUPONS, coupons.list_all, params.CouponListParams, f"{PAGING} created"),
    Route("GET", COUPON, coupons.retrieve, params.CouponRetrieveParams),
    Route("POST", COUPON, coupons.update, params.CouponUpdateParams, "name metadata"),
    Route("DELETE", COUPON, coupons.delete, params.CouponDeleteParams),
    Route(
        "POST",
        CODES,
        coupons.create_code,
        params.PromotionCodeCreateParams,
        "code active metadata promotion.type promotion.coupon",
    ),
    Route("GET", CODES, coupons.list_codes, params.PromotionCodeListParams, f"{PAGING} active code created"),
    Route("GET", CODE, coupons.retrieve_code, params.PromotionCodeRetrieveParams),
    Route("POST", CODE, coupons.update_code, params.PromotionCodeUpdateParams, "active metadata"),
    Route(
        "DELETE",
        "/v1/customers/{customer_id}/discount",
        discounts.delete_customers,
        params.CustomerDeleteDiscountParams,
    ),
    Route(
        "DELETE",
        "/v1/subscriptions/{subscription_id}/discount",
        discounts.delete_subscriptions,
        params.SubscriptionDeleteDiscountParams,
    ),
)
