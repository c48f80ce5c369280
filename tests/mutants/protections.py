"""The protections that the promises rest on: how each is removed, and the tests that must fail then.

`old` must stand exactly once in its file; if the code around it changes, change this list.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Protection:
    """A protection; without it, at least one of `tests` fails."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_SVC = "src/billing_svc"
_INITIAL = f"{_SVC}/platform/database/migrations/versions/0001_initial.py"
_TESTS = "tests/billing_svc"
_TWICE = "tests/faults/test_twice.py"
_HOLDS = "tests/faults/test_holds.py"
_STOPPING = f"{_TESTS}/programs/test_stopping.py"
_SERVING = f"{_TESTS}/api/transport/test_serving.py"
_REPORT_FAULTS = f"{_TESTS}/usage_export/test_faults.py"
_CALL_LIMITS = f"{_TESTS}/stripe/test_call_limits.py"
_SCHEDULES = f"{_TESTS}/subscriptions/test_foreign_schedules.py"
_CHECKOUT_FAULTS = f"{_TESTS}/subscriptions/test_checkout_faults.py"

PROTECTIONS = (
    # Promise 1: counted once.
    Protection(
        "the unique key of usage events",
        _INITIAL,
        '        sa.PrimaryKeyConstraint("account_id", "event_id", name=op.f("pk_usage_events")),\n',
        "",
        (f"{_TWICE}::test_an_event_id_on_two_meters_at_once_is_recorded_once",),
    ),
    Protection(
        "the unique key of reservations' requests",
        _INITIAL,
        '        sa.UniqueConstraint("account_id", "request_id", '
        'name=op.f("uq_reservations_account_id_request_id")),\n',
        "",
        (f"{_TWICE}::test_the_schema_refuses_a_second_reservation_of_a_request",),
    ),
    Protection(
        "a repeated event is compared with the first",
        f"{_SVC}/metering/usage/record_usage.py",
        "    if event.sent != sent:\n        return _reused(event)\n",
        "",
        (f"{_TESTS}/metering/usage/test_repeats.py::test_the_same_id_with_other_content_is_refused",),
    ),
    # Promise 2: one transaction.
    Protection(
        "the shield around transactions",
        f"{_SVC}/platform/database/transactions.py",
        "            task.add_done_callback(_report_abandoned)\n            raise\n",
        "            task.cancel()\n            raise\n",
        (f"{_TESTS}/platform/database/test_transactions.py::test_a_cancelled_caller_does_not_undo_the_work",),
    ),
    Protection(
        "a transaction that lost its connection at COMMIT is not repeated",
        f"{_SVC}/platform/database/transactions.py",
        "                    # The transaction may have been committed. "
        "Only the caller, with the same id, can repeat it safely.\n"
        "                    raise _away() from error\n",
        "                    raise _ConnectionLost from error\n",
        (
            f"{_TESTS}/platform/database/test_transaction_faults.py::test_a_connection_lost_at_commit_is_unknown_and_not_repeated",
        ),
    ),
    Protection(
        "serialization failures and deadlocks are repeated",
        f"{_SVC}/platform/database/transactions.py",
        '_CONFLICTS = frozenset({"40001", "40P01"})',
        "_CONFLICTS: frozenset[str] = frozenset()",
        (f"{_TESTS}/platform/database/test_transactions.py::test_a_serialization_failure_repeats_the_whole_work",),
    ),
    # Promise 3: never over-admitted.
    Protection(
        "the lock of a counter's row",
        f"{_SVC}/metering/counters/store.py",
        "              FOR UPDATE\n           ) AS c\n",
        "           ) AS c\n",
        (f"{_HOLDS}::test_events_that_wait_for_the_same_counter_are_all_counted",),
    ),
    Protection(
        "the hard limit",
        f"{_SVC}/metering/quota/rules.py",
        "    return Decision(allowed=False, reason=Reason.QUOTA_EXHAUSTED, units_beyond=beyond)\n\n\ndef count(",
        "    return Decision(allowed=True, reason=Reason.QUOTA_EXHAUSTED, units_beyond=beyond)\n\n\ndef count(",
        (f"{_HOLDS}::test_four_client_processes_on_two_servers_hold_exactly_what_there_is",),
    ),
    Protection(
        "reserved units are not available to others",
        f"{_SVC}/metering/quota/rules.py",
        "max(0, included - self.consumed - self.reserved)",
        "max(0, self.free(included))",
        (f"{_TESTS}/metering/reservations/test_reservations.py::test_a_hold_takes_up_room_until_it_is_released",),
    ),
    Protection(
        "a reservation is closed by a conditional update",
        f"{_SVC}/metering/reservations/store.py",
        "(new.account_id, new.reservation_id) AND r.state = 'held'\n",
        "(new.account_id, new.reservation_id)\n",
        (
            f"{_TESTS}/metering/reservations/test_reservations.py::test_a_reservation_that_is_closed_is_not_closed_again",
        ),
    ),
    Protection(
        "an expired reservation does not block a record",
        f"{_SVC}/metering/usage/record_usage.py",
        "        await batch.expire(conn)\n",
        "",
        (f"{_TESTS}/metering/reservations/test_reservations.py",),
    ),
    Protection(
        "those who admit units of an account take turns",
        f"{_SVC}/metering/reservations/hold_units.py",
        "            accounts_store.locking({account_id for account_id, _ in since}),\n",
        "            accounts_store.locking(()),\n",
        (f"{_TESTS}/metering/reservations/test_holds_at_borders.py",),
    ),
    Protection(
        "a hold carries its terms",
        f"{_SVC}/metering/usage/batch_ledger.py",
        "        promised = self._terms_of_holds.get(event.reservation_key) if own and units > 0 else None\n",
        "        promised = None\n",
        (f"{_TESTS}/money/test_holds.py",),
    ),
    Protection(
        "what a hold promised is charged at its price",
        f"{_SVC}/usage_export/accrual.py",
        " or left or await counters.has_terms_of_holds(conn, counter):\n",
        " or left:\n",
        (f"{_TESTS}/money/test_holds.py",),
    ),
    Protection(
        "held units take up room in whatever period is current",
        f"{_SVC}/metering/quota/lookup.py",
        "rules.Counter()).holding(self.facts.held)\n",
        "rules.Counter())\n",
        (f"{_TESTS}/metering/reservations/test_holds_at_borders.py",),
    ),
    Protection(
        "a correction takes back at most the event's units",
        f"{_SVC}/metering/corrections/correct_usage.py",
        "    if not 0 < units <= left:\n",
        "    if units <= 0:\n",
        (f"{_TESTS}/metering/corrections/test_corrections.py::test_never_more_than_is_left_is_taken_back",),
    ),
    # Under load.
    Protection(
        "a call whose deadline has passed is dropped",
        f"{_SVC}/platform/batching/batcher.py",
        " if not one[1].done()]",
        "]",
        (f"{_TESTS}/platform/test_batching.py::test_a_cancelled_call_never_reaches_the_database",),
    ),
    Protection(
        "the bound of a queue",
        f"{_SVC}/platform/batching/batcher.py",
        "        if len(self._waiting) >= QUEUE_MAX:\n",
        "        if False:\n",
        (
            f"{_TESTS}/platform/test_batching.py::test_past_the_bound_calls_are_turned_away_at_once_and_the_rest_is_answered",
        ),
    ),
    Protection(
        "a stop lets the calls under way finish",
        f"{_SVC}/programs/server.py",
        "            await running.stop()\n",
        "            await running.server.stop(0)\n",
        (f"{_STOPPING}::test_a_call_that_is_under_way_at_sigterm_is_answered",),
    ),
    Protection(
        "a stop waits until its connections have gone",
        f"{_SVC}/api/transport/serving.py",
        "        if not await connections.gone(self._port, grace_seconds):\n",
        "        if False:\n",
        (f"{_SERVING}::test_until_its_connections_have_gone_a_stop_answers_what_they_send",),
    ),
    Protection(
        "a stopping server refuses new connections",
        f"{_SVC}/api/transport/serving.py",
        "        await connections.refuse_new(self._port)\n",
        "",
        (f"{_SERVING}::test_a_stop_refuses_new_connections_while_it_answers_on_the_open_ones",),
    ),
    Protection(
        "a stop turns unready before it waits",
        f"{_SVC}/programs/server.py",
        "        self.health.drain()\n"
        "        await self.server.stop(self.drain_seconds if grace_seconds is None else grace_seconds)\n",
        "        await self.server.stop(self.drain_seconds if grace_seconds is None else grace_seconds)\n"
        "        self.health.drain()\n",
        (f"{_STOPPING}::test_a_stop_turns_unready_first_and_waits_for_none_who_watches",),
    ),
    Protection(
        "a stop has a bound",
        f"{_SVC}/api/transport/connections.py",
        "        if loop.time() >= until:\n            return False\n",
        "",
        (f"{_SERVING}::test_a_stop_has_a_bound_and_says_that_it_was_reached",),
    ),
    Protection(
        "the bound of a stop leaves room for every connection's age",
        f"{_SVC}/programs/server.py",
        "    return settings.connection_age_seconds * (1 + CONNECTION_AGE_VARIES) + CONNECTION_AGE_GRACE_SECONDS\n",
        "    return CONNECTION_AGE_GRACE_SECONDS\n",
        (f"{_TESTS}/api/test_connections.py::test_a_stop_waits_for_the_age_and_for_the_last_call",),
    ),
    # Stripe's limits.
    Protection(
        "a worker's requests wait for their turn",
        f"{_SVC}/stripe/requests_made.py",
        '            await self._limits.wait(f"{method.upper()} {endpoint}")\n',
        "            pass\n",
        (f"{_CALL_LIMITS}::test_every_request_of_a_worker_s_client_is_paced_and_counted",),
    ),
    Protection(
        "time without calls of Stripe allows no burst",
        f"{_SVC}/stripe/call_limits.py",
        "+ greatest(\n    clock_timestamp(), least(",
        "+ greatest(\n    '-infinity', least(",
        (f"{_CALL_LIMITS}::test_time_without_calls_allows_no_burst",),
    ),
    # Promise 10: closed by default.
    Protection(
        "a request is not read if its caller has no access",
        f"{_SVC}/api/transport/serving.py",
        "        if not self._routing.admits(route.method, call):\n",
        "        if self._routing.admits(route.method, call) is None:\n",
        (f"{_TESTS}/api/transport/test_serving.py::test_a_stranger_is_refused_before_its_request_is_read",),
    ),
    # Promise 5: Stripe's events.
    Protection(
        "an event is acknowledged only after it is stored",
        f"{_SVC}/api/servicers/stripe_events.py",
        "stored = await self._database.run(lambda conn: store.insert(conn, event, ignored_because, now))",
        "stored = bool(\n            __import__('asyncio').ensure_future(\n"
        "                self._database.run(lambda conn: store.insert(conn, event, ignored_because, now))\n"
        "            )\n        )",
        ("tests/faults/test_statements.py::test_a_fault_at_each_statement_leaves_all_or_nothing[accept]",),
    ),
    Protection(
        "the gateway answers 200 only if the service stored the event",
        "src/webhook_gateway/app.py",
        'forwarding.Outcome.AWAY: (HTTPStatus.SERVICE_UNAVAILABLE, "service_unavailable"',
        'forwarding.Outcome.AWAY: (HTTPStatus.OK, "service_unavailable"',
        ("tests/webhook_gateway/test_gateway.py::test_each_status_of_the_service_has_its_answer",),
    ),
    Protection(
        "the signature of an event",
        "src/webhook_gateway/app.py",
        "        if fault is not None:\n",
        "        if False:\n",
        ("tests/webhook_gateway/test_gateway.py::test_what_stripe_did_not_sign_is_400_and_goes_no_further",),
    ),
    Protection(
        "fetched state decides, not the order of events",
        f"{_SVC}/inbox/handle_subscriptions.py",
        "            return await refresh_subscription.fetch(self._stripe, subscription_id)\n",
        "            return refresh_subscription.read(events[-1].object)\n",
        (f"{_TESTS}/inbox/test_apply_events.py::test_any_order_and_repetition_ends_in_what_stripe_has",),
    ),
    Protection(
        "a lease excludes other workers",
        f"{_SVC}/stripe/leases.py",
        "            where=_OBJECTS.c.leased_until <= now,\n",
        "",
        (f"{_REPORT_FAULTS}::test_a_killed_sender_s_slice_is_sent_once_by_its_successor",),
    ),
    Protection(
        "the fencing number when a lease ends",
        f"{_SVC}/stripe/leases.py",
        "_OBJECTS.c.fence == lease.fence)\n        .values(leased_until=now)\n",
        "sa.true())\n        .values(leased_until=now)\n",
        (f"{_TESTS}/inbox/test_apply_events.py::TestLeases::test_a_worker_that_lost_its_lease_writes_nothing",),
    ),
    # Promise 6: Stripe's side of a crash.
    Protection(
        "the idempotency key of writes at Stripe",
        f"{_SVC}/stripe/client.py",
        '(method(dict(params), {"idempotency_key": idempotency_key}), params)',
        "(method(dict(params), {}), params)",
        (f"{_CHECKOUT_FAULTS}::test_a_first_checkout_that_crashed_is_carried_on",),
    ),
    Protection(
        "an idempotency key survives its process",
        f"{_SVC}/stripe/intents.py",
        '            where=_REQUESTS.c.state == "refused",\n',
        "",
        (f"{_CHECKOUT_FAULTS}::test_a_first_checkout_that_crashed_is_carried_on",),
    ),
    Protection(
        "an intent older than Stripe's keys is looked up",
        f"{_SVC}/stripe/intents.py",
        "        if row.answered_500 or now - row.created_at >= KEY_TRUSTED_FOR:\n",
        "        if row.answered_500:\n",
        (f"{_CHECKOUT_FAULTS}::test_an_intent_of_yesterday_is_looked_up",),
    ),
    Protection(
        "after a stored 500 the object is looked up",
        f"{_SVC}/stripe/intents.py",
        "        if row.answered_500 or now - row.created_at >= KEY_TRUSTED_FOR:\n",
        "        if now - row.created_at >= KEY_TRUSTED_FOR:\n",
        (f"{_CHECKOUT_FAULTS}::test_after_a_stored_500_stripe_is_asked_before_a_new_key_is_used",),
    ),
    # Promise 7: reported once.
    Protection(
        "`already exists` is a success",
        f"{_SVC}/stripe/client.py",
        "            if not _is_known_already(error.__cause__, event.identifier):\n                raise\n",
        "            raise\n",
        (
            f"{_REPORT_FAULTS}::test_accepted_but_unheard_is_not_counted_again",
            f"{_REPORT_FAULTS}::test_a_killed_sender_s_slice_is_sent_once_by_its_successor",
        ),
    ),
    Protection(
        "a usage report keeps its identifier",
        f"{_SVC}/usage_export/sending.py",
        "begun.reported_for, begun.identifier\n",
        'begun.reported_for, f"{begun.identifier}_{begun.attempts}"\n',
        (f"{_REPORT_FAULTS}::test_accepted_but_unheard_is_not_counted_again",),
    ),
    Protection(
        "an attempt is stored before the call",
        f"{_SVC}/usage_export/store.py",
        "            first_attempt_at=sa.func.coalesce(_REPORTS.c.first_attempt_at, now),\n",
        "",
        (f"{_REPORT_FAULTS}::test_of_what_is_unknown_for_a_day_the_meter_s_sum_decides",),
    ),
    Protection(
        "a sent usage report does not grow",
        f"{_SVC}/usage_export/rules.py",
        "        return self.state is states.ReportState.SEALED and self.attempts == 0\n",
        "        return self.state is states.ReportState.SEALED\n",
        (f"{_REPORT_FAULTS}::test_accepted_but_unheard_is_not_counted_again",),
    ),
    Protection(
        "after a day the meter's total decides about an unknown attempt",
        f"{_SVC}/usage_export/billability.py",
        "    is_known = report.refused_at is None and now < report.first_attempt_at + IDENTIFIER_TRUSTED_FOR\n",
        "    is_known = report.refused_at is None\n",
        (f"{_REPORT_FAULTS}::test_of_what_is_unknown_for_a_day_the_meter_s_sum_decides",),
    ),
    Protection(
        "a failed report that may be at Stripe keeps its first attempt",
        f"{_SVC}/usage_export/states.py",
        "    return _to(Transition.FAILED_UNDECIDED, now, error=why)\n",
        "    return _to(Transition.FAILED_UNDECIDED, now, error=why, first_attempt_at=None)\n",
        (f"{_REPORT_FAULTS}::test_a_retry_of_what_may_be_at_stripe_looks_again",),
    ),
    Protection(
        "a transition begins only in its source states",
        f"{_SVC}/usage_export/store.py",
        "update.where(begins).values(",
        "update.values(",
        (f"{_TESTS}/usage_export/test_states.py::test_what_is_no_transition_changes_no_row",),
    ),
    Protection(
        "an answer to an old identifier changes nothing",
        f"{_SVC}/usage_export/store.py",
        "(_REPORTS.c.state == report.state, _REPORTS.c.identifier == report.identifier)",
        "(_REPORTS.c.state == report.state,)",
        (f"{_REPORT_FAULTS}::test_an_answer_that_comes_after_a_retry_marks_nothing",),
    ),
    Protection(
        "the fencing number of a sender",
        f"{_SVC}/usage_export/sending.py",
        "            if not await leases.renew(conn, lease, self._clock.now()):\n"
        "                raise leases.Overtaken\n",
        "",
        (f"{_REPORT_FAULTS}::test_a_sender_that_was_overtaken_marks_nothing",),
    ),
    Protection(
        "appended rows cannot be changed",
        f"{_SVC}/platform/database/privileges.py",
        "    if table not in APPENDED:\n",
        "    if True:\n",
        (f"{_TESTS}/platform/database/test_privileges.py",),
    ),
    Protection(
        "a reader cannot name a table",
        f"{_SVC}/platform/database/privileges.py",
        'f"REVOKE USAGE, CREATE ON SCHEMA public FROM PUBLIC, {READER}"',
        'f"REVOKE CREATE ON SCHEMA public FROM PUBLIC, {READER}"',
        (f"{_TESTS}/platform/database/test_readers.py::test_nothing_tells_the_twins_apart",),
    ),
    Protection(
        "plans of functions with their owner's rights are not sent to the client",
        f"{_SVC}/platform/database/migrations/versions/0006_readable.py",
        "    SET client_min_messages = error\n",
        "",
        (f"{_TESTS}/platform/database/test_readers.py::test_nothing_tells_the_twins_apart",),
    ),
    Protection(
        "a reader gets rows in the same order with every plan",
        f"{_SVC}/platform/database/migrations/versions/0006_readable.py",
        "     ORDER BY 1\n",
        "",
        (f"{_TESTS}/platform/database/test_readers.py::test_nothing_tells_the_twins_apart",),
    ),
    # Stripe's limits.
    Protection(
        "a worker's requests wait for their turn",
        f"{_SVC}/stripe/requests_made.py",
        '            await self._limits.wait(f"{method.upper()} {endpoint}")\n',
        "            pass\n",
        (f"{_CALL_LIMITS}::test_every_request_of_a_worker_s_client_is_paced_and_counted",),
    ),
    Protection(
        "time without calls of Stripe allows no burst",
        f"{_SVC}/stripe/call_limits.py",
        "+ greatest(\n    clock_timestamp(), least(",
        "+ greatest(\n    '-infinity', least(",
        (f"{_CALL_LIMITS}::test_time_without_calls_allows_no_burst",),
    ),
    # Stripe's objects enter by one door (ADR 0021).
    Protection(
        "a number that is a boolean is refused",
        f"{_SVC}/stripe/parse.py",
        "        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:\n",
        "        if not isinstance(value, int) or not least <= value <= most:\n",
        (f"{_TESTS}/recorded/test_door.py::test_a_subscription_that_was_never_understood_gives_nothing",),
    ),
    Protection(
        "what needs no price is applied with a parked event",
        f"{_SVC}/inbox/apply_events.py",
        "            standing = error.standing if isinstance(error, apply_subscription.CannotApply) else None\n",
        "            standing = None\n",
        (f"{_TESTS}/recorded/test_door.py::test_an_end_is_applied_where_no_price_is_of_a_catalog",),
    ),
    Protection(
        "no change ends a schedule of someone else in passing",
        f"{_SVC}/subscriptions/changes/stripe_change.py",
        "        if may_release_foreign or not await self.is_foreign(account_id, fetched):\n",
        "        if may_release_foreign or fetched is not None:\n",
        (f"{_SCHEDULES}::test_a_preview_tells_of_the_foreign_schedule_and_releases_nothing",),
    ),
    Protection(
        "overage is denied while no invoice would charge it",
        f"{_SVC}/metering/quota/terms.py",
        "            limit = limit.without_overage\n",
        "            pass\n",
        (f"{_TESTS}/metering/quota/test_terms.py::test_from_a_pause_on_charging_is_denying_and_before_it_is_not",),
    ),
    # Promise 10: closed by default.
    Protection(
        "an RPC is only for callers with its group",
        f"{_SVC}/api/access.py",
        "    if entry is not Open.ANY_CALLER and entry not in caller.groups:\n",
        "    if entry is None:\n",
        (f"{_TESTS}/api/test_access.py::test_every_rpc_refuses_callers_without_its_group",),
    ),
    Protection(
        "an account prefix ends at a separator of ids",
        f"{_SVC}/api/scope.py",
        "    return account_id == prefix or opens_all(prefix, account_id)\n",
        "    return account_id.startswith(prefix)\n",
        (f"{_TESTS}/api/test_scope.py::test_an_account_prefix_opens_the_accounts_that_it_covers",),
    ),
)
