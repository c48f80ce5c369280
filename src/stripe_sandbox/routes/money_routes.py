"""The route table's rows for coupons and discounts; see `table`."""

from stripe import params

from stripe_sandbox.api.requests import Route
from stripe_sandbox.invoices import coupons, discounts

PAGING = "limit starting_after ending_before"
COUPONS = "/v1/coupons"
COUPON = COUPONS + "/{coupon_id}"
CODES = "/v1/promotion_codes"
CODE = CODES + "/{code_id}"

ROUTES = (
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
