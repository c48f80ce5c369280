// The first path of a caller in another language, which needs only our .proto files.
//
// node first_path.js PROTO_FOLDER ADDRESS TOKEN ACCOUNT

"use strict";

const assert = require("node:assert/strict");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const CALL_SECONDS = 5;
const PLAN_SECONDS_MAX = 2;
const POLL_MILLISECONDS = 50;

const [protoFolder, address, token, account] = process.argv.slice(2);

const files = ["quota", "usage", "subscription"].map((name) => `billing/v1/${name}.proto`);
const definition = protoLoader.loadSync(files, {
  includeDirs: [protoFolder],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
});
const { v1 } = grpc.loadPackageDefinition(definition).billing;
const credentials = grpc.credentials.createInsecure();
const quota = new v1.QuotaService(address, credentials);
const usage = new v1.UsageService(address, credentials);
const subscriptions = new v1.SubscriptionService(address, credentials);

const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${token}`);

function call(client, method, request) {
  const deadline = Date.now() + CALL_SECONDS * 1000;
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

const check = (quantity = 1) => call(quota, "CheckQuota", { account_id: account, meter: "runs", quantity });
const record = (event_id, quantity = 1) =>
  call(usage, "RecordUsage", { account_id: account, event_id, meter: "runs", quantity });

async function useUpTheFreePlan() {
  for (let run = 1; run <= 5; run += 1) {
    assert.equal((await check()).decision, "DECISION_ALLOWED");
    assert.equal((await record(`run_${run}`)).used, run);
  }
  const repeated = await record("run_5");
  assert.equal(repeated.duplicate, true);
  assert.equal(repeated.used, 5);

  const denied = await check();
  assert.equal(denied.decision, "DECISION_DENIED");
  assert.equal(denied.reason, "DECISION_REASON_QUOTA_EXHAUSTED");
  assert.equal(denied.used, 5);
  assert.ok(denied.resets_at.seconds * 1000 > Date.now());
  assert.deepEqual(denied.upgrade_plans, ["pro"]);
}

async function buyPro() {
  const checkout = await call(subscriptions, "CreateCheckout", { account_id: account, plan: "pro" });
  const page = await fetch(checkout.url);
  assert.equal(page.status, 200);
  assert.match(await page.text(), /20\.00 USD/);
  const paid = await fetch(`${checkout.url}/pay`, { method: "POST", redirect: "manual" });
  assert.equal(paid.status, 303);

  const deadline = Date.now() + PLAN_SECONDS_MAX * 1000;
  for (;;) {
    const { subscription } = await call(subscriptions, "GetSubscription", { account_id: account });
    if (subscription.plan === "pro") {
      assert.equal(subscription.status, "STATUS_ACTIVE");
      return;
    }
    assert.ok(Date.now() < deadline, `still on ${subscription.plan} ${PLAN_SECONDS_MAX} s after the payment`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
  }
}

async function useUpPro() {
  const fits = await check(200);
  assert.equal(fits.decision, "DECISION_ALLOWED");
  assert.equal(fits.reason, "DECISION_REASON_UNSPECIFIED");
  assert.equal(fits.included, 200);
  assert.equal((await record("two_hundred", 200)).billable, 0);

  const overage = await check();
  assert.equal(overage.decision, "DECISION_ALLOWED");
  assert.equal(overage.reason, "DECISION_REASON_OVERAGE");
  assert.deepEqual(overage.projected_overage_cost, { currency: "usd", amount: "0.50" });
  assert.equal((await record("one_more")).billable, 1);
}

async function main() {
  await useUpTheFreePlan();
  await buyPro();
  await useUpPro();
  console.log("the first path is open");
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
