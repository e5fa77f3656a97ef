"""The mutants: what is wrong with each, where, and the tests that are run against it.

A change is a piece of source that stands in its file once, and what stands there instead. Adding a
mutant is adding a line; one whose place is gone fails by name.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant", "place_of"]

FLOWS = ("tests/contract/test_flows.py", "tests/contract/test_sessions.py")
WAITS = ("tests/contract/test_waits.py",)
CLAIMS = ("tests/contract/test_claims.py",)
GUARDS = ("tests/contract/test_guards.py",)
LISTINGS = ("tests/contract/test_listings.py",)
OWN_EXPIRY = ("tests/contract/test_own_expiry.py",)
PREFIXES = ("tests/contract/test_id_prefix.py",)
RETENTION = ("tests/contract/test_retention.py",)
FAULTS = ("tests/faults/test_faults.py",)
GIVEN_UP = (
    "tests/faults/test_faults.py::test_what_was_given_up_is_not_applied_when_it_comes_at_last",
)
HINTS = ("tests/stores/nats/test_nats_hints.py",)
PARTS_NATS = ("tests/stores/nats/test_nats_parts.py", "-k", "nats and not cluster")
RACES_NATS = ("tests/stores/nats/test_nats_part_races.py", "-k", "nats and not cluster")
REMEMBERED = ("tests/faults/test_faults.py::test_a_record_remembers_what_the_log_has_forgotten",)
TWICE = ("tests/faults/test_faults.py::test_a_lost_reply_does_not_complete_several_twice",)
LOST = (
    "tests/machine/test_interleavings.py::test_an_update_whose_flow_is_deleted_before_its_reply_was_done",
)
SERIAL = ("tests/machine/test_interleavings.py",)
MEANWHILE = ("tests/core/test_meanwhile.py",)
PROGRESS = ("tests/contract/test_progress.py",)
REPLIES = ("tests/stores/redis/test_redis_replies.py",)
REDIS_PARTS = ("tests/stores/redis/test_redis_parts.py",)
WORKER = ("tests/core/test_worker.py",)
REPORTS = ("tests/contract/test_reports.py", "-k", "memory or redis-8")
PARTS = ("tests/contract/test_parts.py",)
LOGS = ("tests/contract/test_logs.py",)
SESSIONS = ("tests/contract/test_sessions.py", "-k", "memory")
CANCELLED = ("tests/faults/test_cancellation.py", "-k", "sqlite")
WAKEUPS = (
    "tests/core/test_wakeups.py",
    "-k",
    "hint or leaves or looked or passed or sleeper or sooner",
)
DRIVERS = ("tests/drivers/test_drivers_servers.py",)
MACHINE = (
    "tests/machine/test_parity.py::test_a_store_does_what_the_model_says[memory-blocking]",
    "tests/machine/test_parity.py::test_a_store_does_what_the_model_says[sqlite-blocking]",
)
PARTS = ("tests/contract/test_parts.py", "tests/contract/test_logs.py", *MACHINE)


class Mutant(NamedTuple):
    """One place of the package that is changed, and the tests that are run then, in their order."""

    name: str
    what: str
    file: str
    """A pattern under the package, `*` standing for directories too."""
    old: str
    new: str
    tests: tuple[str, ...]


def place_of(mutant: Mutant, package: Path) -> Path:
    """Return the one file that has what the mutant changes, exactly once; else raise `LookupError`."""
    files = [
        file
        for file in sorted(package.rglob("*"))
        if fnmatch(file.relative_to(package).as_posix(), mutant.file) and file.is_file()
    ]
    places = [
        file for file in files for _ in range(file.read_text(encoding="utf-8").count(mutant.old))
    ]
    if len(places) != 1:
        message = f"{mutant.name}: its old text is found {len(places)} times in {mutant.file}; expected once"
        raise LookupError(message)

    return places[0]


RULES = "protocol/rules/*.py"
MEMORY = "stores/memory/tables.py"
COMMIT_LUA = "stores/redis*commit.lua"
COMMITS_PY = "stores/nats/commits.py"
MESSAGES_PY = "stores/nats/messages.py"
RESOLVING_PY = "stores/nats/resolving.py"
ON_REDIS = ("-k", "redis-8.2")
ON_NATS = ("-k", "nats")
ON_SQLITE = ("-k", "sqlite")

MUTANTS: tuple[Mutant, ...] = (
    # --- versions ---------------------------------------------------------------------------------
    Mutant(
        "version-not-checked",
        "a write passes whatever is stored",
        RULES,
        "    if head.revision != expected:\n        return STALE\n",
        "",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "version-number-compared",
        "a flow that took the place of another passes for it, if both are at one version",
        RULES,
        "    if head.revision != expected:\n",
        '    read = getattr(change, "replaces", None)\n'
        "    if head.revision != expected and (read is None or read.version != head.version):\n",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "check-and-write-in-two-steps",
        "update reads, compares in the client, and writes over whatever is there by then",
        "core/records.py",
        "    reply = yield from commits.send(context, new_commit_id(), now_ms, (put,))\n",
        "    (found,) = yield Read((flow.key,), now_ms)\n"
        "    if found is not None and found.head.revision == put.expected:\n"
        '        put = put._replace(expected="*")\n\n'
        "    reply = yield from commits.send(context, new_commit_id(), now_ms, (put,))\n",
        SERIAL,
    ),
    Mutant(
        "create-overwrites",
        "create writes over a flow that is there",
        RULES,
        "        return EXISTS if isinstance(change, Put) else _must_report(change, head)\n",
        "        return None if isinstance(change, Put) else _must_report(change, head)\n",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "check-ignored",
        "a record that is only checked never refuses a commit: write skew",
        RULES,
        "    if expected == ANY:\n",
        "    if isinstance(change, Check) and change.claim is None and head is not None:\n"
        "        return None\n\n"
        "    if expected == ANY:\n",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "only-the-first-change-checked",
        "of a commit of several records only the first is checked",
        RULES,
        "    for index, change in enumerate(commit.changes):\n",
        "    for index, change in enumerate(commit.changes[:1]):\n",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "partial-batch",
        "what can be written of a refused commit is written",
        RULES,
        "    if conflicts:\n        return Refused(conflicts)\n",
        "    if conflicts:\n"
        "        places = {conflict.place for conflict in conflicts}\n"
        "        for place, change in enumerate(commit.changes):\n"
        "            if place not in places:\n"
        "                _apply(tables, commit, change)\n\n"
        "        return Refused(conflicts)\n",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "progress-version-reset",
        "an overwritten progress begins again at version 1",
        RULES,
        "        head = head._replace(version=old.version + 1, created_ms=old.created_ms)\n",
        "        head = head._replace(version=1, created_ms=old.created_ms)\n",
        (*PROGRESS, *MACHINE),
    ),
    Mutant(
        "delete-says-it-was-there",
        "deleting what is absent returns True",
        RULES,
        "    return Outcome(accepted=remove(tables, change.key))\n",
        "    remove(tables, change.key)\n    return Outcome(accepted=True)\n",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "progress-outlives-its-flow",
        "the progress of a deleted flow is left for the next one of its name",
        RULES,
        "    if key.kind == FLOW:\n        for step in tables.steps(key.id):\n"
        "            tables.remove(step.key, step.head)\n",
        "",
        (*PROGRESS, *MACHINE),
    ),
    # --- parts and logs ---------------------------------------------------------------------------
    Mutant(
        "log-counter-not-written",
        "an append does not count, so the next one writes over it",
        "protocol/rules/parts.py",
        '    tables.write(at, written(head, commit.id, counter), b"", counter)\n',
        "",
        PARTS,
    ),
    Mutant(
        "append-key-ignored",
        "an append that is sent again under its key is written again",
        "protocol/rules/parts.py",
        "    if change.head.position:\n        first",
        "    if change.head.position and not flow_id:\n        first",
        PARTS,
    ),
    Mutant(
        "duplicate-leaves-a-gap",
        "an append that is not written because of its key counts",
        "protocol/rules/parts.py",
        "            return Outcome(first, duplicate=True)\n",
        "            counted = tables.head(counter_key(flow_id, log))\n"
        "            if counted is not None:\n"
        "                more = counted._replace(version=counted.version + 1)\n"
        '                tables.write(counter_key(flow_id, log), more, b"", counted)\n\n'
        "            return Outcome(first, duplicate=True)\n",
        PARTS,
    ),
    Mutant(
        "append-leaves-orphans-alone",
        "an append does not move when the parts of a flow that never came are removed",
        "protocol/rules/parts.py",
        "    note_orphan(tables, commit, flow_id)\n    return",
        "    return",
        PARTS,
    ),
    Mutant(
        "orphans-go-though-their-flow-came",
        "parts that were written before their flow are removed although it exists by then",
        "protocol/rules/expiry.py",
        "    if tables.head(flow_key(key.id)) is None:\n",
        "    if key.id:\n",
        PARTS,
    ),
    Mutant(
        "parts-outlive-their-flow",
        "the parts of a deleted flow are left for the next one of its name",
        "protocol/rules/expiry.py",
        "        tables.drop_parts(key.id)\n\n    tables.remove(key, head)\n",
        "    tables.remove(key, head)\n",
        PARTS,
    ),
    Mutant(
        "parts-of-an-expired-flow-listed",
        "parts are listed although their flow has expired",
        "stores/memory/tables.py",
        "self._has_left(wanted.flow_id, wanted.now_ms)",
        "self._has_left(wanted.flow_id, 0)",
        PARTS,
    ),
    Mutant(
        "trim-takes-parts",
        "trimming a log removes other parts whose names begin with its name",
        "protocol/rules/parts.py",
        "        entries=request.entries,\n",
        "        entries=False,\n",
        PARTS,
    ),
    Mutant(
        "keep-overwrites",
        "a part that is to be kept is written over",
        "protocol/rules/commits.py",
        "    if change.expected == IF_ABSENT and old is not None:\n",
        "    if change.expected == IF_ABSENT and old is not None and not commit.id:\n",
        PARTS,
    ),
    Mutant(
        "part-version-reset",
        "a part that is written again stays at version 1",
        "core/writes.py",
        "    number = 1 if old is None else old.version + 1\n    head = Head(number, 0, created_ms, now_ms, name",
        "    number = 1\n    head = Head(number, 0, created_ms, now_ms, name",
        PARTS,
    ),
    Mutant(
        "prefix-takes-one-more",
        "a listing of parts by prefix also has the first name after all that begin with it",
        "stores/sqlite/parts.py",
        " AND name >= ? AND name < ?",
        " AND name >= ? AND name <= ?",
        (*PARTS[:1], *ON_SQLITE),
    ),
    Mutant(
        "part-listing-not-reversed",
        "the last parts are asked for, and the first ones returned",
        "core/parts.py",
        "after, before, reverse, limit + 1,",
        "after, before, False, limit + 1,",
        PARTS,
    ),
    Mutant(
        "kept-part-settled-as-written",
        "the object of a part that was there already takes over what is stored",
        "core/unit_of_work.py",
        "                if change.expected == IF_ABSENT and not outcome.accepted:\n",
        "                if change.expected == IF_ABSENT and not outcome.revision:\n",
        PARTS,
    ),
    Mutant(
        "replaced-part-not-checked",
        "a part that takes the place of a deleted one is written whatever is there by then",
        "core/entries.py",
        "    return put._replace(expected=instead.revision, replaces=instead, fresh=True)\n",
        "    return put._replace(expected=ANY, replaces=instead, fresh=True)\n",
        PARTS,
    ),
    Mutant(
        "entry-forgets-its-flow",
        "an entry does not say which version of its flow its commit made",
        "core/unit_of_work.py",
        "updated_ms=now_ms, attempts=version)",
        "updated_ms=now_ms, attempts=0)",
        PARTS,
    ),
    Mutant(
        "entry-rewritten",
        "an entry of a log can be changed and written as a part",
        "core/writes.py",
        "    if log_of(key) is not None:\n",
        "    if log_of(key) is None and not now_ms:\n",
        PARTS,
    ),
    Mutant(
        "copy-sets-a-counter-back",
        "a copy over another log makes its next append write over an entry",
        "copying.py",
        "        return entry.record.head.version > stored.head.version\n",
        "        return overwrite\n",
        PARTS,
    ),
    # --- outcomes ---------------------------------------------------------------------------------
    Mutant(
        "retry-reported-as-conflict",
        "a commit whose reply was lost is not recognised when it comes again",
        RULES,
        "    if logged is not None:\n        if not logged:\n",
        "    if logged is not None and not logged:\n        if not logged:\n",
        (*FAULTS, *SERIAL),
    ),
    Mutant(
        "resolve-does-not-fence",
        "a commit that was declared never to be applied is applied when it arrives",
        RULES,
        "    tables.log(request.id, at_ms, ())\n    return None\n",
        "    return None\n",
        GIVEN_UP,
    ),
    Mutant(
        "resolve-forgets-what-records-remember",
        "a commit whose log entry is gone is denied, though a record remembers it",
        RULES,
        "        if head is not None and request.id in head.commits:\n",
        "        if head is not None and request.id == head.error:\n",
        REMEMBERED,
    ),
    Mutant(
        "lost-write-reported-as-not-written",
        "a write that may have been applied is reported as one that was not",
        "stores/embedded.py",
        "    if lost is not None and call.writes:\n"
        "        raise uncertain(commit_id, keys, lost) if commit_id else lost\n",
        "",
        FAULTS,
    ),
    Mutant(
        "outage-as-none",
        "an outage is returned as a missing flow",
        "core/records.py",
        '    key = flow_key(check_id(flow_id, "a flow id"))\n'
        "    (record,) = yield Read((key,), context.settings.now_ms())\n",
        '    key = flow_key(check_id(flow_id, "a flow id"))\n'
        "    try:\n"
        "        (record,) = yield Read((key,), context.settings.now_ms())\n"
        "    except Exception:\n"
        "        return None\n\n",
        (*FAULTS, "tests/stores/sqlite/test_sqlite_faults.py"),
    ),
    Mutant(
        "session-continues-after-a-lost-commit",
        "a session whose commit has no known outcome stays open",
        "core/sessions.py",
        "        unit.lose(error, plan, now_ms)\n        raise\n",
        '        unit.step("refuse")\n        raise\n',
        (*FAULTS, *FLOWS),
    ),
    Mutant(
        "transact-does-not-retry",
        "a conflict of its own commit ends a transaction",
        "core/sessions.py",
        "            if not repeatable or attempt == attempts:\n",
        "            if error is not None:\n",
        (*SERIAL, *FLOWS),
    ),
    Mutant(
        "live-object-handed-out",
        "two readers of one version share an object",
        "core/envelope.py",
        "def decode_flow(key: Key, record: Record, state_type: Any | None)",
        "@lru_cache\ndef decode_flow(key: Key, record: Record, state_type: Any | None)",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "ids-normalised",
        "two ids that differ in Unicode normalisation are one",
        "protocol/keys.py",
        "    text = str.__str__(value)\n",
        '    text = __import__("unicodedata").normalize("NFC", str.__str__(value))\n',
        ("tests/core/test_keys.py", "tests/core/test_bad_input.py"),
    ),
    # --- conditions -------------------------------------------------------------------------------
    Mutant(
        "wait-overwritten",
        "setting a condition drops the completions that it has",
        RULES,
        "    done, well = tables.set_members(key, terms.children)\n    if old is not None and status == PENDING:\n",
        "    tables.remove_items(key)\n"
        "    done, well = tables.set_members(key, terms.children)\n    if old is not None and status == PENDING:\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "closed-wait-set-again",
        "setting a condition that has ended opens it again",
        RULES,
        "    if old is not None and status > PENDING:\n        record",
        "    if old is not None and status > CANCELLED:\n        record",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "completion-counted-twice",
        "a child that completes again counts again",
        RULES,
        "    if item is not None and item.done:\n",
        "    if item is not None and item.done and status != PENDING:\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "pending-completion-dropped",
        "what completes before its condition is forgotten",
        RULES,
        "    tables.write_item(change.key, change.child, kept, change.payload)\n",
        "",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "second-now-satisfied",
        "a repeated last completion is also reported to end the wait",
        RULES,
        "        return Outcome(status=None if status == PENDING_COMPLETIONS else status, duplicate=True)\n",
        "        return Outcome(\n"
        "            status=None if status == PENDING_COMPLETIONS else status,"
        " duplicate=True, satisfied=status == SATISFIED\n"
        "        )\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "any-satisfied-by-a-failure",
        "a failed child satisfies a condition that waits for the first success",
        RULES,
        "    return done == expected or (any_of and well > 0)\n",
        "    return done == expected or (any_of and done > 0)\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "any-waits-forever",
        "a condition that waits for the first success never ends if all fail",
        RULES,
        "    return done == expected or (any_of and well > 0)\n",
        "    return well > 0 if any_of else done == expected\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "failed-child-not-counted",
        "a child that failed leaves its parent waiting for it",
        RULES,
        "    done = row.done + 1\n",
        "    done = row.done + int(change.success)\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "stranger-counted",
        "the completion of a stranger counts",
        RULES,
        "    if status != PENDING or item is None or not item.member:\n",
        "    if status != PENDING:\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "late-completion-counted",
        "a completion is accepted after the condition has ended",
        RULES,
        "    if status != PENDING or item is None or not item.member:\n",
        "    if item is None or not item.member:\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "cleared-wait-forgotten",
        "a completion after a condition was cleared is reported as pending",
        RULES,
        "    if status <= TOMBSTONE:\n        return Outcome(status=TOMBSTONE - status)\n",
        "    if status <= TOMBSTONE:\n        return _keep_pending(tables, commit, change, row)\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "satisfied-wait-without-wake-up",
        "a parent is not due when its wait has ended",
        RULES,
        "        due_ms = commit.now_ms if head.due_ms is None else head.due_ms\n",
        "        due_ms = head.due_ms\n",
        (*CLAIMS, *MACHINE),
    ),
    Mutant(
        "unnotified-wait-expires",
        "an ended condition is removed before its parent was notified",
        RULES,
        "        due_ms = commit.now_ms if head.due_ms is None else head.due_ms\n"
        "        return head._replace(due_ms=due_ms, expires_ms=None)\n",
        "        due_ms = commit.now_ms if head.due_ms is None else head.due_ms\n"
        "        return head._replace(due_ms=due_ms, expires_ms=after(commit.now_ms, commit.retain_ms))\n",
        (*RETENTION, *MACHINE),
    ),
    Mutant(
        "deadline-starts-again",
        "setting a pending condition again moves its deadline",
        RULES,
        "        created_ms, version, commits = old.head.created_ms, old.head.version + 1, old.head.commits\n",
        "        created_ms, version, commits = change.created_ms, old.head.version + 1, old.head.commits\n",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "deadline-off-by-one",
        "a deadline has passed one millisecond late",
        MEMORY,
        "        for due_ms, key in self._deadlines:\n            if due_ms > now_ms or",
        "        for due_ms, key in self._deadlines:\n            if due_ms >= now_ms or",
        (*WAITS, *MACHINE),
    ),
    Mutant(
        "late-result-not-shown",
        "what completes between the reading and the closing of an overdue condition is not shown",
        "core/claims.py",
        "                context, [plan.shown for plan in batch if plan.shown and plan.closes]\n",
        "                context, []\n",
        SERIAL,
    ),
    # --- claims -----------------------------------------------------------------------------------
    Mutant(
        "guard-ignored",
        "a commit is made for the owner of a claim that is lost",
        RULES,
        "    return None if head.claim == change.claim else STALE\n",
        "    return None\n",
        GUARDS,
    ),
    Mutant(
        "guard-of-the-revision",
        "commits that share a claim are refused because the owner writes the flow",
        "core/unit_of_work.py",
        "                yield Check(key, ANY, now_ms + claim.lease_ms, claim.token)\n",
        "                revision = self._guards[key][0].revision or ''\n"
        "                yield Check(key, revision, now_ms + claim.lease_ms)\n",
        GUARDS,
    ),
    Mutant(
        "guard-does-not-renew",
        "work under a guard loses the claim after one lease",
        "core/unit_of_work.py",
        "                yield Check(key, ANY, now_ms + claim.lease_ms, claim.token)\n",
        "                yield Check(key, ANY, None, claim.token)\n",
        GUARDS,
    ),
    Mutant(
        "redis-guard-ignored",
        "on Redis a commit is made for the owner of a claim that is lost",
        COMMIT_LUA,
        "        if cjson.decode('[' .. head.rest)[8] ~= expected then reason = 'stale' end\n",
        "",
        GUARDS,
    ),
    Mutant(
        "flow-deleted-by-id-replaced",
        "a new flow is added in the place of one that nobody has read, and refused at the commit",
        "core/unit_of_work.py",
        "            if entry is not None and key.kind == FLOW and entry.instead is None:\n",
        "            if entry is not None and key.kind == FLOW and entry.instead is checked:\n",
        ("tests/contract/test_deletion_by_id.py",),
    ),
    Mutant(
        "lost-commit-not-resolved",
        "a commit that was applied is reported as one that was not",
        "core/commits.py",
        "            return (yield from resolve(context, lost))\n",
        "            yield from resolve(context, lost)\n            return None\n",
        ("tests/contract/test_commits_resolved.py",),
    ),
    Mutant(
        "separator-not-escaped",
        "two lists of texts make one id",
        "model/composite_ids.py",
        '"%": "%25", "/": "%2F", ',
        '"%": "%25", ',
        ("tests/core/test_composite_ids.py",),
    ),
    Mutant(
        "claim-by-list-read-write",
        "a claim is written over whatever is there by then",
        "core/claim_plans.py",
        "    put = Put(key, head, body, old.revision, old, claiming=True,",
        '    put = Put(key, head, body, "*", old, claiming=False,',
        (*SERIAL, "tests/processes/test_concurrency.py"),
    ),
    Mutant(
        "claim-does-not-see-an-extension",
        "a claim passes though its flow was extended since it was listed",
        RULES,
        "        and head.due_ms > now_ms\n    ):\n        return CLAIMED\n",
        "        and head.due_ms > now_ms\n    ):\n        return None\n",
        SERIAL,
    ),
    Mutant(
        "claim-does-not-fence",
        "a claim leaves the revision as it is, so the former owner can write",
        RULES,
        "    if type(change) is Put:\n        outcome = _replace(tables, commit, change)\n",
        "    old = tables.head(change.key) if type(change) is Put and change.claiming else None\n"
        "    if old is not None and type(change) is Put and not refusal(change, old, commit.now_ms):\n"
        "        head = change.head.stamped(old.revision, old.commits)\n"
        "        tables.write(change.key, head, None if change.keeps_body else change.body, old)\n"
        "        outcome = Outcome(head.version, head.revision, head.status, head.created_ms)\n"
        "        tables.log(commit.id, at_ms, (outcome,))\n"
        "        return Applied((outcome,))\n\n"
        "    if type(change) is Put:\n        outcome = _replace(tables, commit, change)\n",
        (*CLAIMS, *SERIAL),
    ),
    Mutant(
        "extend-after-the-claim-was-lost",
        "who has lost a claim moves the lease of who has it now",
        RULES,
        "    if head is None or head.claim != request.claim:\n",
        "    if head is None or head.claim is None:\n",
        (*CLAIMS, *SERIAL),
    ),
    Mutant(
        "extend-fences-its-owner",
        "an extension changes the revision, so the owner's own commit is refused",
        RULES,
        "    extended = head._replace(due_ms=request.due_ms)\n",
        '    extended = head._replace(due_ms=request.due_ms, revision=f"{head.revision}+")\n',
        (*CLAIMS, *SERIAL),
    ),
    Mutant(
        "release-keeps-the-owner",
        "a claim that was released still has an owner",
        "core/claims.py",
        "updated_ms=now_ms, owner=None, claim=None, due_ms=due_ms\n",
        "updated_ms=now_ms, due_ms=due_ms\n",
        (*CLAIMS, *MACHINE),
    ),
    Mutant(
        "suspended-flow-stays-claimed",
        "a flow that waits still has its owner",
        "core/writes.py",
        "    if status is FlowStatus.SUSPENDED and old.status != status._value_:\n        return None, None, None\n",
        "    if status is FlowStatus.SUSPENDED and old.status != status._value_:\n"
        "        return None, old.owner, old.claim\n",
        (*CLAIMS, *MACHINE),
    ),
    Mutant(
        "owner-does-not-renew",
        "an owner's write leaves its lease as it was",
        "core/writes.py",
        "        return now_ms + claim.lease_ms, old.owner, old.claim\n",
        "        return due_ms, old.owner, old.claim\n",
        (*CLAIMS, *MACHINE),
    ),
    Mutant(
        "attempts-not-counted",
        "a flow that is claimed again and again looks new each time",
        "core/claim_plans.py",
        "        attempts=old.attempts + 1,\n",
        "        attempts=old.attempts,\n",
        (*CLAIMS, *MACHINE),
    ),
    Mutant(
        "lease-off-by-one",
        "a lease ends one millisecond late",
        "core/claim_plans.py",
        "        return self.now_ms + self.lease_ms\n",
        "        return self.now_ms + self.lease_ms + 1\n",
        CLAIMS,
    ),
    Mutant(
        "due-off-by-one",
        "a flow is due one millisecond late",
        MEMORY,
        "        for due_ms, key in self._due_flows:\n            if due_ms > now_ms or",
        "        for due_ms, key in self._due_flows:\n            if due_ms >= now_ms or",
        (*CLAIMS, *MACHINE),
    ),
    # --- retention --------------------------------------------------------------------------------
    Mutant(
        "live-flow-expires",
        "every flow has the time to live of an ended one",
        "core/writes.py",
        "    if ends and expires_ms is None:\n",
        "    if expires_ms is None:\n",
        (*RETENTION, *MACHINE),
    ),
    Mutant(
        "failed-flow-expires-early",
        "a failed flow is kept no longer than a completed one",
        "core/writes.py",
        "retention.failed if status is FlowStatus.FAILED else retention.flows\n",
        "retention.flows\n",
        (*RETENTION, *MACHINE),
    ),
    Mutant(
        "expiry-off-by-one",
        "what has expired is there for one more millisecond",
        RULES,
        "    return head.expires_ms is not None and head.expires_ms <= now_ms\n",
        "    return head.expires_ms is not None and head.expires_ms < now_ms\n",
        (*RETENTION, *MACHINE),
    ),
    Mutant(
        "sweep-removes-the-living",
        "a sweep removes what has not expired yet",
        MEMORY,
        "        for expires_ms, key in self._expiries:\n            if expires_ms > now_ms or",
        "        for expires_ms, key in self._expiries:\n            if",
        (*RETENTION, *MACHINE),
    ),
    Mutant(
        "expiry-not-watched",
        "a session does not write a flow of which only the expiry was changed",
        "core/writes.py",
        "    if (None if flow.expires_at is None else to_ms(flow.expires_at)) != old.expires_ms:\n",
        "    if old.expires_ms != old.expires_ms:\n",
        (*OWN_EXPIRY, *MACHINE),
    ),
    Mutant(
        "retention-overrides-expiry",
        "a flow that ends expires by the retention, whatever its user has set",
        "core/writes.py",
        "    if ends and expires_ms is None:\n",
        "    if ends:\n",
        (*OWN_EXPIRY, *MACHINE),
    ),
    Mutant(
        "retention-taken-for-own-expiry",
        "the expiry that the retention gave stays when the flow is written again or revived",
        "core/writes.py",
        "    return None if ended and not envelope.has_own_expiry(loaded.body) else expires_ms\n",
        "    return expires_ms\n",
        (*RETENTION, *OWN_EXPIRY),
    ),
    Mutant(
        "own-expiry-forgotten",
        "the second write of an ended flow gives it the retention instead of its own expiry",
        "core/envelope.py",
        "    return _OWN_EXPIRY in body[: body.find(_STATE)]\n",
        "    return False\n",
        (*OWN_EXPIRY, *MACHINE),
    ),
    Mutant(
        "expired-flows-hide-live-ones",
        "flows that have expired hide those that are due after them",
        MEMORY,
        "            live = head.expires_ms is None or head.expires_ms > now_ms\n",
        "            live = True\n",
        OWN_EXPIRY,
    ),
    Mutant(
        "redis-live-flow-has-a-time-to-live",
        "the server removes a live flow, and its due time stays in the index",
        COMMIT_LUA,
        "    local expires = new.status >= COMPLETED and new.expires\n",
        "    local expires = new.expires\n",
        (*OWN_EXPIRY, *ON_REDIS),
    ),
    Mutant(
        "nats-expired-flow-written",
        "a flow that has expired since it was read is written, and lives again",
        COMMITS_PY,
        "            if expired or (change.claiming and held):\n",
        "            if change.claiming and held:\n",
        (*OWN_EXPIRY, *ON_NATS),
    ),
    # --- listings ---------------------------------------------------------------------------------
    Mutant(
        "index-not-updated",
        "a flow is listed under the status it was created with",
        MEMORY,
        "        if old is None or old.status != head.status or old.type != head.type:\n",
        "        if old is None:\n",
        (*LISTINGS, *MACHINE),
    ),
    Mutant(
        "cursor-skips",
        "the next page begins behind the millisecond of the last entry",
        MEMORY,
        "            seen = -after[0], after[1]\n",
        '            seen = -after[0], "\\U0010ffff"\n',
        (*LISTINGS, *MACHINE),
    ),
    Mutant(
        "cursor-repeats",
        "the next page begins with the last entry",
        MEMORY,
        "            if after is not None and entry == (-after[0], after[1]):\n                continue\n",
        "",
        (*LISTINGS, *MACHINE),
    ),
    Mutant(
        "count-includes-the-expired",
        "what has expired is counted until it is swept",
        MEMORY,
        "            return len(listing.under(fields)) - expired\n",
        "            return len(listing.under(fields)) + 0 * expired\n",
        (*LISTINGS, *RETENTION, *MACHINE),
    ),
    Mutant(
        "index-outlives-its-record",
        "a deleted flow stays in the index of what is due",
        MEMORY,
        "        _move(self._due_flows, key, old.due_ms, None)\n",
        "",
        (*CLAIMS, *FLOWS, *MACHINE),
    ),
    Mutant(
        "bound-inclusive",
        "created_before takes in what was created at that moment",
        MEMORY,
        '            first = 1 - wanted.created_before_ms, ""\n',
        '            first = -wanted.created_before_ms, ""\n',
        (*LISTINGS, *MACHINE),
    ),
    Mutant(
        "prefix-cursor-repeats",
        "the next page of a listing by id begins with the last entry",
        MEMORY,
        "        for key in self._keys.irange(first, inclusive=(after is None, True)):\n",
        "        for key in self._keys.irange(first, inclusive=(True, True)):\n",
        (*PREFIXES, *MACHINE),
    ),
    Mutant(
        "sqlite-prefix-is-a-pattern",
        "in a prefix of ids, % and _ match anything, and case does not matter",
        "stores/sqlite/tables.py",
        '        ("id >= ?", prefix),\n'
        '        ("id < ?", None if prefix is None else prefix + _AFTER_TEXT),\n',
        '        ("CAST(id AS TEXT) LIKE ?", prefix and prefix.decode() + "%"),\n',
        (*PREFIXES, *ON_SQLITE),
    ),
    Mutant(
        "redis-prefix-ends-at-ascii",
        "what continues a prefix with a character of several bytes is not listed",
        "stores/redis/index.py",
        '_AFTER_TEXT = b"\\xff"',
        '_AFTER_TEXT = b"\\x7f"',
        (*PREFIXES, *ON_REDIS),
    ),
    Mutant(
        "nats-prefix-ordered-by-token",
        "flows with a prefix come in the order of their subjects, which is not that of their ids",
        "stores/nats/listings.py",
        "        return sorted(flow_key(decode_token(one)) for one in tokens)\n",
        "        return [flow_key(decode_token(one)) for one in sorted(tokens)]\n",
        (*PREFIXES, *ON_NATS),
    ),
    # --- what a revision, an id and a set are ---------------------------------------------------------
    Mutant(
        "version-reset-after-delete",
        "a revision is the version's number, which begins again with the next flow of a name",
        RULES,
        "    return head.stamped(commit_id, (commit_id, *before))\n",
        "    return head.stamped(str(head.version), (commit_id, *before))\n",
        (*FLOWS, *MACHINE),
    ),
    Mutant(
        "id-collision",
        "two ids are written as one NATS subject",
        "protocol/keys.py",
        '0123456789_-")\n',
        '0123456789_-=")\n',
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "set-order-makes-a-clean-record-dirty",
        "a set is written in the order in which it happens to lie in memory",
        "codec/hooks/containers.py",
        "        out.sort(key=order)\n",
        "",
        ("tests/core/test_codec.py::test_set_is_written_sorted",),
    ),
    Mutant(
        "keys-that-meet-are-written",
        "of two keys of a dict that are equal once they are read back, one is lost",
        "codec/hooks/containers.py",
        "OBJECT, enc if distinct else checked, dec)",
        "OBJECT, enc, dec)",
        ("tests/core/test_codec_losses.py::test_elements_that_meet_are_refused",),
    ),
    Mutant(
        "state-grows-at-each-read",
        "a state that its own class changes when it is read is written",
        "codec/states.py",
        "return _read_back(data, state_type, codec) if codec.converts else data",
        "return data",
        ("tests/core/test_codec_losses.py::test_a_value_that_reading_changes_is_refused",),
    ),
    Mutant(
        "arguments-of-a-type-not-compared",
        "text that was stored in a Box[str] is read as the Decimal of a Box[Decimal]",
        "core/envelope.py",
        "if stored.arguments and asked.arguments and stored.arguments != asked.arguments:",
        "if stored.arguments and not asked.arguments:",
        ("tests/core/test_codec_losses.py::test_another_argument_is_another_type",),
    ),
    Mutant(
        "processed-item-stays-failed",
        "an item that failed and was processed later is in both sets",
        "model/progress.py",
        "            self._failed.discard(index)\n",
        "            pass\n",
        PROGRESS,
    ),
    Mutant(
        "damaged-bitmap-is-read",
        "a progress record whose bitmaps are not those that its head counts is read",
        "core/envelope.py",
        "if counts != (len(marked) - len(failed), len(failed)) or not failed <= marked:",
        "if not failed <= marked:",
        ("tests/core/test_index_set.py::test_malformed_record_is_corrupt",),
    ),
    Mutant(
        "clock-of-the-last-year",
        "a lease that ends after the year 9999 is an OverflowError",
        "model/times.py",
        "if milliseconds >= _since_epoch(_LATEST_CLOCK) // MS:",
        "if milliseconds < 0 and milliseconds > 0:",
        ("tests/core/test_bad_input.py::test_every_argument_is_checked",),
    ),
    Mutant(
        "expiry-lost-on-update",
        "an ended flow that is written again stays forever",
        "core/writes.py",
        "    if ends and expires_ms is None:\n",
        "    if ends and expires_ms is None and (old is None or old.status != status._value_):\n",
        (*RETENTION, *MACHINE),
    ),
    Mutant(
        "copy-keeps-claims",
        "what was claimed in the source is held in the target by an owner who is not there",
        "copying.py",
        "    if head.owner is not None and entry.key.kind == FLOW:\n",
        '    if head.owner == "":\n',
        ("tests/contract/test_copy.py",),
    ),
    # --- the unit of work ---------------------------------------------------------------------------
    Mutant(
        "change-not-seen",
        "a flow of which only the error has changed counts as clean",
        "core/writes.py",
        "    if head.error != old.error:\n",
        "    if old.error != old.error:\n",
        SESSIONS,
    ),
    Mutant(
        "session-delete-not-checked",
        "what a session deletes goes whatever it has become",
        "core/entries.py",
        "        return Delete(entry.key, None if instead is None else instead.revision, instead)\n",
        '        return Delete(entry.key, "*" if instead is None else "*", instead)\n',
        (*SESSIONS[:1], *MACHINE),
    ),
    Mutant(
        "refused-commit-forgets-its-changes",
        "after a conflict the changes that were pending are gone",
        "core/unit_of_work.py",
        '        self.step("refuse")\n',
        '        self.step("refuse")\n        self.forget()\n',
        SESSIONS,
    ),
    Mutant(
        "completions-sent-again",
        "the next commit of a session completes what the last one has completed",
        "core/unit_of_work.py",
        "        self._completions.clear()\n        self._appends.clear()\n        self._checks.clear()\n"
        "        self._guards.clear()\n"
        "        return self.receipt",
        "        self._appends.clear()\n        self._checks.clear()\n        self._guards.clear()\n"
        "        return self.receipt",
        ("tests/contract/test_sessions.py::test_a_completion_is_sent_by_one_commit",),
    ),
    Mutant(
        "idle-claim-not-checked",
        "who has lost a claim commits, if the claimed flow itself is not written",
        "core/unit_of_work.py",
        "            changes += [renewal(entry, now_ms) for entry in idle]\n            entries += idle\n",
        "            pass\n",
        ("tests/contract/test_claims.py::test_a_lost_claim_refuses_the_commit_of_anything",),
    ),
    Mutant(
        "object-in-two-sessions",
        "one object is changed by one session and written by another",
        "core/unit_of_work.py",
        "        if isinstance(other, UnitOfWork) and other is not self and record in other:\n",
        "        if isinstance(other, UnitOfWork) and other is self and record in other:\n",
        SESSIONS,
    ),
    Mutant(
        "deleted-progress-is-not-replaced",
        "progress that was to overwrite, was deleted and is saved after all meets what is stored",
        "core/entries.py",
        "        return Entry(key, record, Intent.OVERWRITE, fresh=True)\n",
        "        return Entry(key, record, Intent.NEW)\n",
        MEANWHILE,
    ),
    Mutant(
        "unread-results-look-empty",
        "results that could not be read are none after the next write of their condition",
        "core/writes.py",
        "    if isinstance(results, UnreadResults):\n",
        "    if isinstance(results, int):\n",
        MEANWHILE,
    ),
    # --- drivers --------------------------------------------------------------------------------------
    Mutant(
        "cancelled-write-is-left",
        "a cancellation leaves a commit to a thread, and its outcome is not reported",
        "drivers/embedded_async.py",
        "            in_thread = call_to_end if call.writes else call_abandonable\n",
        "            in_thread = call_abandonable\n",
        CANCELLED,
    ),
    Mutant(
        "asyncio-cancels-a-write",
        "`Task.cancel` cuts a commit in half that was being sent",
        "drivers/asyncio_driver.py",
        "        return await self._units.perform_to_end(request)\n",
        "        return await self._units.perform(request)\n",
        DRIVERS,
    ),
    Mutant(
        "portal-leaves-an-interrupted-write",
        "Ctrl-C leaves a commit under way behind the portal",
        "drivers/portal.py",
        "                if not writes(request):\n                    portal.abandon(crossing)\n",
        "                if request is not None:\n                    portal.abandon(crossing)\n",
        DRIVERS,
    ),
    Mutant(
        "portal-hands-over-without-a-shield",
        "Ctrl-C while a commit is handed to the portal reports one that was written as never sent",
        "drivers/portal.py",
        "        if crossing.task is None or crossing.ended:\n",
        "        if crossing is not None:\n",
        ("tests/drivers/test_portal_interrupts.py",),
    ),
    Mutant(
        "portal-waits-for-a-reply-that-it-has",
        "Ctrl-C at the instant of the reply makes the caller wait forever",
        "drivers/portal.py",
        "        if crossing.task is None or crossing.ended:\n",
        "        if crossing.task is None:\n",
        ("tests/drivers/test_portal_interrupts.py",),
    ),
    Mutant(
        "portal-write-not-shielded",
        "a cancelled task on trio leaves its commit under way behind the portal",
        "drivers/portal.py",
        "        if writes(request):\n            with CancelScope(shield=True):\n",
        "        if writes(request):\n            with CancelScope(shield=False):\n",
        DRIVERS,
    ),
    Mutant(
        "reply-reaches-the-wrong-caller",
        "the reply to who was cancelled goes to the next in line",
        "drivers/redis_multiplexed.py",
        "            request = sent[0]\n            request.replies.append(reply)\n",
        "            while len(sent) > 1 and sent[0].ended.cancelled():\n"
        "                sent.popleft()\n\n"
        "            request = sent[0]\n            request.replies.append(reply)\n",
        ("tests/drivers/test_drivers_redis.py::test_late_reply_of_a_cancelled_call_is_dropped",),
    ),
    Mutant(
        "lost-call-not-asked-again",
        "a commit of an embedded store whose reply was lost is left as it is",
        "stores/embedded.py",
        "        lost = error\n        yield Pause(_PAUSE_SECONDS * attempt)\n",
        "        lost = error\n        break\n",
        SESSIONS,
    ),
    Mutant(
        "another-event-loop-not-noticed",
        "a store is used from an event loop that its connections do not belong to",
        "drivers/cancellation.py",
        "            return asyncio.get_running_loop() is loop\n",
        "            return asyncio.get_running_loop() is not None\n",
        ("tests/contract/test_async_api.py", "-k", "loop"),
    ),
    # --- SQLite -----------------------------------------------------------------------------------
    Mutant(
        "sqlite-fork-in-the-middle-of-a-write",
        "a child is made while another thread of its parent holds SQLite's locks",
        "stores/sqlite/connection.py",
        "        self._held = self._writing.acquire(timeout=BUSY_SECONDS + 1)\n",
        "        self._held = False\n",
        ("tests/processes/test_processes.py::test_forks_while_threads_commit",),
    ),
    Mutant(
        "sqlite-lock-taken-late",
        "a transaction reads first and asks for the lock when it writes",
        "stores/sqlite/connection.py",
        '"BEGIN IMMEDIATE"',
        '"BEGIN"',
        ("tests/stores/sqlite/test_sqlite_faults.py::test_a_write_waits_for_the_lock",),
    ),
    Mutant(
        "sqlite-failed-commit-reported-as-not-written",
        "a COMMIT that failed on the disk is reported as not written, and may be applied",
        "stores/sqlite/connection.py",
        "            if code_of(error) == sqlite3.SQLITE_IOERR:\n",
        "            if code_of(error) == sqlite3.SQLITE_NOTICE:\n",
        ("tests/stores/sqlite/test_sqlite_faults.py", "-k", "commit"),
    ),
    Mutant(
        "sqlite-writes-to-a-removed-file",
        "a commit is acknowledged in a file that is found under no name",
        "stores/sqlite/connection.py",
        "            if trouble := tables.guard.trouble():\n",
        "            if trouble := None:\n",
        ("tests/stores/sqlite/test_sqlite_faults.py", "-k", "taken_away"),
    ),
    Mutant(
        "sqlite-connection-crosses-a-fork",
        "a forked child believes that it holds its parent's locks",
        "stores/sqlite/connection.py",
        "timeout=BUSY_SECONDS + 1)\n        _close_all(self._idle)\n",
        "timeout=BUSY_SECONDS + 1)\n",
        ("tests/stores/sqlite/test_sqlite_log.py", "-k", "crosses_a_fork"),
    ),
    Mutant(
        "sqlite-locks-held-once",
        "a worker that opens and closes its own file loses the log that it writes",
        "stores/sqlite/guards.py",
        "                    _set_lock(descriptor, fcntl.F_RDLCK, bytes_)\n",
        "",
        ("tests/stores/sqlite/test_sqlite_log.py",),
    ),
    Mutant(
        "sqlite-pending-completion-dropped",
        "what completes before its condition is forgotten when that is set",
        "stores/sqlite/tables.py",
        'DO UPDATE SET member = 1"',
        'DO UPDATE SET member = 1, done = 0"',
        (*WAITS, *ON_SQLITE),
    ),
    Mutant(
        "sqlite-cursor-skips",
        "the next page begins behind the millisecond of the last entry",
        "stores/sqlite/tables.py",
        '        same = f"{where} AND created_ms = ? AND id > ?"\n',
        '        same = f"{where} AND created_ms = ? AND id > ? AND 0"\n',
        (*LISTINGS, *ON_SQLITE),
    ),
    Mutant(
        "sqlite-counts-the-expired",
        "what has expired is counted until it is swept",
        "stores/sqlite/tables.py",
        '            f" - (SELECT count(*) FROM {table} INDEXED BY {table}_expires"',
        '            f" - 0 * (SELECT count(*) FROM {table} INDEXED BY {table}_expires"',
        ("tests/contract/test_retention.py::test_ended_flows_expire", *ON_SQLITE),
    ),
    Mutant(
        "sqlite-index-not-updated",
        "a flow is listed under the status it was created with",
        "stores/sqlite/tables.py",
        "        if head[place] != old[place]:\n",
        "        if head[place] != old[place] and place != 1:\n",
        (*LISTINGS, *ON_SQLITE),
    ),
    # --- Redis --------------------------------------------------------------------------------------
    Mutant(
        "redis-version-not-checked",
        "the script writes whatever revision is stored",
        COMMIT_LUA,
        "      elseif revision_of(head) ~= expected then\n",
        "      elseif false then\n",
        (*FLOWS, *ON_REDIS),
    ),
    Mutant(
        "redis-refuses-single-commits-only",
        "what can be written of a refused commit of several records is written",
        COMMIT_LUA,
        "if #refused > 0 then return refused end\n",
        "if #refused > 0 and #changes == 1 then return refused end\n",
        (*FLOWS, *ON_REDIS),
    ),
    Mutant(
        "redis-commit-not-remembered",
        "the reply of a commit is not kept, so one that is sent again meets its own writes",
        COMMIT_LUA,
        "redis.call('SET', log, reply, 'PX', ARGV[4])\n",
        "",
        (*FAULTS, *ON_REDIS),
    ),
    Mutant(
        "redis-fence-not-kept",
        "a commit that was given up is applied when it arrives",
        "stores/redis*resolve.lua",
        "redis.call('SET', KEYS[1], '', 'PX', ARGV[2])\n",
        "",
        (*GIVEN_UP, *ON_REDIS),
    ),
    Mutant(
        "redis-record-remembers-one-commit",
        "only the last commit of a record can be resolved once its reply is gone",
        COMMIT_LUA,
        "  return commit_id .. ' ' .. (seven or old.commits)\n",
        "  return commit_id\n",
        (*REMEMBERED, *ON_REDIS),
    ),
    Mutant(
        "redis-index-entry-not-removed",
        "an entry of the index that is no longer true stays",
        "stores/redis*records.lua",
        "  if #gone > 0 then redis.call('ZREM', index, unpack(gone)) end\n",
        "",
        (*LISTINGS, *CLAIMS, *RETENTION, *ON_REDIS),
    ),
    Mutant(
        "redis-expiry-kept-on-update",
        "a flow that is written again after it had ended is removed by the server",
        COMMIT_LUA,
        "redis.call('PERSIST', key)\n",
        "redis.call('EXISTS', key)\n",
        (*RETENTION, *ON_REDIS),
    ),
    Mutant(
        "redis-ttl-lost-on-update",
        "the server keeps a flow forever that ended after it was created",
        COMMIT_LUA,
        "    local expires = new.status >= COMPLETED and new.expires\n",
        "    local expires = not old and new.status >= COMPLETED and new.expires\n",
        (*RETENTION, *ON_REDIS),
    ),
    Mutant(
        "redis-expired-flow-counts",
        "what has expired is there for a commit until it is swept",
        COMMIT_LUA,
        "    local gone = flow and has_expired(flow)\n",
        "    local gone = false\n",
        (*FLOWS, *ON_REDIS),
    ),
    Mutant(
        "redis-claim-decided-by-the-client",
        "a claim passes though its flow was extended since it was listed",
        COMMIT_LUA,
        "      elseif string.find(flags, 'c', 1, true) and head.due and head.due > now\n",
        "      elseif false and head.due and head.due > now\n",
        (*SERIAL, *ON_REDIS),
    ),
    Mutant(
        "redis-completion-counted-twice",
        "a child that completes again counts again",
        COMMIT_LUA,
        "  if item and string.sub(item, 2, 2) == '1' then\n    return",
        "  if false then\n    return",
        (*WAITS, *ON_REDIS),
    ),
    Mutant(
        "redis-expiry-off-by-one",
        "what has expired is there for one more millisecond",
        "stores/redis*records.lua",
        "  return head.expires and head.expires <= now\n",
        "  return head.expires and head.expires < now\n",
        (*RETENTION, *FLOWS, *ON_REDIS),
    ),
    Mutant(
        "redis-short-way-for-another-status",
        "a flow is written with another status, and listed with the one that it had",
        "stores/redis*put.lua",
        " and placed == new_placed",
        "",
        ("tests/stores/redis/test_redis_scripts.py",),
    ),
    Mutant(
        "redis-parts-of-two-bodies",
        "a large body that is written while it is read is put together from what is there",
        "stores/redis/reads.py",
        "        if found and all(which == name and chunk is not None for which, chunk in found):\n",
        "        if found and all(chunk is not None for which, chunk in found):\n",
        REPLIES,
    ),
    Mutant(
        "redis-append-ignores-keys",
        "the same key is appended again",
        COMMIT_LUA,
        "    if first then return '[' .. first",
        "    if false then return '[' .. first",
        (*LOGS, *ON_REDIS),
    ),
    Mutant(
        "redis-kept-part-is-written",
        "a part that is to be kept is written over",
        COMMIT_LUA,
        "  if old and change.expected == '-' then",
        "  if false then",
        (*PARTS, *ON_REDIS),
    ),
    Mutant(
        "redis-orphaned-parts-removed-too-early",
        "parts are swept at the time of their first write, whatever was written since",
        "stores/redis*sweep.lua",
        "  if not is_last then return end\n",
        "",
        REDIS_PARTS,
    ),
    Mutant(
        "redis-sweep-takes-parts-that-came-later",
        "a flow that the server has removed takes parts with it that were written since",
        "stores/redis*sweep.lua",
        "        redis.call('UNLINK', keys.chunks)\n",
        "        redis.call('UNLINK', keys.chunks, keys.parts, keys.names)\n",
        REDIS_PARTS,
    ),
    Mutant(
        "redis-part-without-its-time-to-live",
        "a part that is written after its flow has ended stays forever",
        COMMIT_LUA,
        "    redis.call('PEXPIRE', parts, int(left))\n",
        "",
        REDIS_PARTS,
    ),
    Mutant(
        "redis-large-body-outlives-its-flow",
        "the large bodies of a deleted flow's parts stay forever",
        "stores/redis*records.lua",
        "  leave_large(id)\n  redis.call('UNLINK', keys.flow",
        "  redis.call('UNLINK', keys.flow",
        REDIS_PARTS,
    ),
    Mutant(
        "redis-removal-not-remembered",
        "a removal of parts whose reply was lost counts none",
        "stores/redis*remove_parts.lua",
        "redis.call('SET', KEYS[1], reply, 'PX', ARGV[1])\n",
        "",
        REDIS_PARTS,
    ),
    Mutant(
        "redis-cut-page-is-the-last",
        "a page of parts ends after a MiB of bodies",
        "stores/redis*parts.lua",
        "    found[2] = 1\n",
        "",
        REDIS_PARTS,
    ),
    Mutant(
        "redis-counters-among-the-names",
        "the counters of logs are listed as parts",
        "stores/redis*records.lua",
        "  return (string.sub(name, -1) == '/' and 'c' or 'n') .. name\n",
        "  return 'n' .. name\n",
        (*LOGS, *ON_REDIS),
    ),
    # --- NATS ---------------------------------------------------------------------------------------
    Mutant(
        "nats-publish-without-expected-sequence",
        "a record is published whatever is stored",
        MESSAGES_PY,
        "        headers = {EXPECTED: str(expected)} if expected >= 0 else {}\n",
        "        headers = {}\n",
        (*SERIAL, *FLOWS, *ON_NATS),
    ),
    Mutant(
        "nats-tombstone-taken-for-absent",
        "what was deleted counts as what never was, so its name cannot be used again",
        "stores/nats/answers.py",
        '    if headers.get("KV-Operation"):\n        return Stored(sequence, None,',
        '    if headers.get("KV-Operation"):\n        return Stored(0, None,',
        (
            "tests/contract/test_flows.py::test_recreated_flow_is_another_record",
            *ON_NATS,
        ),
    ),
    Mutant(
        "nats-stale-follower-read",
        "a read is served by any replica, which may not have what was acknowledged",
        "stores/nats/setup.py",
        '    exchange.leader = int(settings.get("num_replicas", 1)) > 1 and not stale_reads\n',
        "    exchange.leader = False\n",
        ("tests/stores/nats/test_nats_store.py::test_replicas_are_read_from_their_leader",),
    ),
    Mutant(
        "nats-check-left-out",
        "what a commit depends on and does not write is not guarded by its batch",
        COMMITS_PY,
        "        reads = self._planner.checks(request, tables, writes)\n",
        "        reads = self._planner.checks(request, tables, writes)[:0]\n",
        (*SERIAL, *FLOWS, *ON_NATS),
    ),
    Mutant(
        "nats-part-of-a-batch-reported-as-all",
        "a commit is reported as done of which a server that ran out of storage has kept a part",
        RESOLVING_PY,
        '        if found[last].sequence < log.sequence + fields["length"] - 1:\n',
        "        if not fields:\n",
        ("tests/stores/nats/test_nats_servers.py::test_full_server_keeps_part_of_a_batch",),
    ),
    Mutant(
        "nats-lost-reply-not-looked-for",
        "a commit of several records that is sent again meets its own writes",
        COMMITS_PY,
        "self._commit(request, deadline, again=bool(lost))\n",
        "self._commit(request, deadline, again=False)\n",
        (*TWICE, *FAULTS, *ON_NATS),
    ),
    Mutant(
        "nats-refusal-after-a-lost-reply-believed",
        "a retry is reported as a conflict with itself",
        COMMITS_PY,
        "            if lost and isinstance(reply, Refused):\n",
        "            if not lost and isinstance(reply, Refused):\n",
        (*LOST, *FAULTS, *ON_NATS),
    ),
    Mutant(
        "nats-duplicate-taken-for-a-fence",
        "a commit that the server knows by its id is denied",
        RESOLVING_PY,
        "                return Applied(())  # the id was taken, and not by a fence: the commit is there\n",
        "                return None\n",
        (*LOST, *FAULTS, *ON_NATS),
    ),
    Mutant(
        "nats-old-entry-not-removed",
        "an entry that is no longer true stays",
        MESSAGES_PY,
        "        plan.purges.extend((entry, True) for entry in sorted(before - after))\n",
        "",
        ("tests/stores/nats/test_nats_store.py", *LISTINGS, *ON_NATS),
    ),
    Mutant(
        "nats-hint-believed",
        "a listing shows what an entry says, not what the head says",
        "stores/nats/listings.py",
        "    return wanted.includes(head) and",
        "    return wanted._replace(status=None).includes(head) and",
        (*HINTS, *LISTINGS, *ON_NATS),
    ),
    Mutant(
        "nats-due-hint-believed",
        "a flow is claimed because an entry says that it is due",
        "stores/nats/listings.py",
        "head.due_ms is not None\n                    and head.due_ms <= now_ms\n"
        "                    and (head.expires_ms",
        "head.due_ms is not None\n                    and (head.expires_ms",
        (*HINTS, *CLAIMS, *ON_NATS),
    ),
    Mutant(
        "nats-completion-not-fenced-by-its-life",
        "completions of a condition that was cleared count for the next of its name",
        "stores/nats/tables.py",
        "        wait.items, wait.spilled, wait.life = {}, 0, self._commit\n",
        "        wait.spilled, wait.life = 0, self._commit\n",
        (*WAITS, *ON_NATS),
    ),
    Mutant(
        "wakeups-lost-with-a-waiter",
        "a waiter that is cancelled when it was woken takes the notification with it",
        "protocol/wakeups.py",
        "            elif waiter.is_woken or waiter.is_looking:\n",
        "            elif False:\n",
        WAKEUPS,
    ),
    Mutant(
        "wakeups-not-passed-on-in-the-middle",
        "a waiter whose look fails keeps the work from the others",
        "protocol/wakeups.py",
        "            elif waiter.is_woken or waiter.is_looking:\n",
        "            elif waiter.is_woken:\n",
        WAKEUPS,
    ),
    Mutant(
        "wakeups-of-several-wake-one",
        "what may be several flows wakes one waiter, and no other after that",
        "protocol/wakeups.py",
        "        if is_more and self.passes_on and",
        "        if False and",
        WAKEUPS,
    ),
    Mutant(
        "wakeups-times-leave-with-their-keeper",
        "no other waiter keeps the times when the one that did has left",
        "protocol/wakeups.py",
        "            if self._expected:\n                self._poke_keeper(waiter)\n",
        "",
        WAKEUPS,
    ),
    Mutant(
        "wakeups-twice",
        "a hint that comes by two ways wakes two waiters",
        "protocol/wakeups.py",
        "elif not (revision and self._is_known(hint)):",
        "else:",
        WAKEUPS,
    ),
    Mutant(
        "wakeups-of-other-types",
        "a commit wakes a waiter for flows of another type",
        "protocol/wakeups.py",
        "waiter.what == WATCH or not waiter.wants(type_name)",
        "waiter.what == WATCH",
        WAKEUPS,
    ),
    Mutant(
        "waiting-deaf-to-completions",
        "the last completion does not wake a worker for the parent",
        "protocol/hints.py",
        "        return commit.now_ms if outcome.satisfied else None\n",
        "        return None\n",
        ("tests/contract/test_waiting.py", "-k", "memory and completion"),
    ),
    Mutant(
        "waiting-survives-its-store",
        "closing the store does not end a call that waits",
        "core/open_waiters.py",
        "            for waiter in self._waiters:\n                waiter.close()\n",
        "",
        ("tests/contract/test_waiting.py", "-k", "memory and closing and claim_due"),
    ),
    Mutant(
        "nats-part-of-a-gone-flow-read",
        "parts that are left of a deleted flow are those of the next one of its name",
        "stores/nats/part_tables.py",
        "        if found is None or (found.life, found.name) != (flow.life, key.name):\n",
        "        if found is None:\n",
        PARTS_NATS,
    ),
    Mutant(
        "nats-key-of-a-gone-log-believed",
        "an append is the duplicate of an entry that went with the flow before",
        "stores/nats/part_tables.py",
        "        return sequence if life == flow.life else None\n",
        "        return sequence or None\n",
        PARTS_NATS,
    ),
    Mutant(
        "nats-root-of-parts-not-verified",
        "a part is written although its flow was deleted meanwhile, and nobody ever sees it",
        "stores/nats/part_tables.py",
        "                found[root_of(flow_id)] = root.sequence\n",
        "",
        RACES_NATS,
    ),
    Mutant(
        "nats-first-part-unseen-by-its-flow",
        "a flow is deleted that has got its first part meanwhile, which is left to the next one",
        "stores/nats/tables.py",
        "                self._touch(flow_key(key.id))\n",
        "                pass\n",
        RACES_NATS,
    ),
    Mutant(
        "nats-orphan-swept-though-its-flow-came",
        "the sweep of parts without a flow does not see that it has come",
        "stores/nats/part_tables.py",
        "                    found[flow_key(flow_id)] = owner.sequence\n",
        "                    pass\n",
        RACES_NATS,
    ),
    Mutant(
        "nats-missing-node-taken-for-empty",
        "a listing leaves out the parts of a node that was split before it was read",
        "stores/nats/part_tables.py",
        "                self._source.stale(keys[0], [node_of(flow_id, name) for name in path])\n",
        "                return Node()\n",
        RACES_NATS,
    ),
    Mutant(
        "nats-sweep-purges-new-parts",
        "what is left of a deleted flow is purged with the parts of the next one",
        "stores/nats/sweeping.py",
        "self._layout.parts_of(flow_id), sequence, deadline",
        "self._layout.parts_of(flow_id), None, deadline",
        PARTS_NATS,
    ),
    Mutant(
        "nats-log-of-an-append-not-looked-for",
        "an append whose reply was lost is the duplicate of itself",
        COMMITS_PY,
        "        if again and (len(request.changes) > 1 or has_parts):\n",
        "        if again and len(request.changes) > 1:\n",
        PARTS_NATS,
    ),
    Mutant(
        "nats-removal-of-parts-counted-again",
        "parts that were removed by a try whose reply was lost are not counted",
        "stores/nats/part_removal.py",
        "            if text is not None:  # by a try whose reply was lost\n",
        '            if text == b"":\n',
        PARTS_NATS,
    ),
    Mutant(
        "nats-directory-splits-in-place",
        "a node that is split keeps its name, so a parent that was read too early misses the other half",
        "stores/nats/part_directory.py",
        '        halves = [Child("", self._new_node(left)), Child(low, self._new_node(right))]\n',
        '        halves = [Child("", path[-1] or self._new_node(left)), Child(low, self._new_node(right))]\n'
        "        self._nodes[halves[0].node], self.changed[halves[0].node] = left, None\n",
        ("tests/stores/nats/test_nats_directory.py",),
    ),
    Mutant(
        "end-not-reported",
        "a flow that ends does not complete its condition",
        "core/commits.py",
        "    sent = reported = with_reports(changes)\n",
        "    sent = reported = changes\n",
        REPORTS,
    ),
    Mutant(
        "end-reported-over-a-result",
        "what a commit says of a child by hand is doubled by the report of its end",
        "core/reports.py",
        "    return [one for one in found if (one.key, one.child) not in said]\n",
        "    return found\n",
        REPORTS,
    ),
    Mutant(
        "deletion-by-id-not-reported",
        "a flow that is deleted by its id alone does not complete its condition",
        "protocol/rules/version_checks.py",
        "    return REPORTS if is_live and head.reports_to is not None else None\n",
        "    return None\n",
        REPORTS,
    ),
    Mutant(
        "redis-deletion-by-id-not-reported",
        "the same, in the script of Redis",
        "stores/redis/commit.lua",
        "        and cjson.decode('[' .. head.rest)[6] ~= cjson.null then\n",
        "        and false then\n",
        REPORTS,
    ),
    Mutant(
        "overtaken-deletion-refused",
        "a deletion by id is refused as stale if the flow is written while it is reported",
        "core/reports.py",
        " if place < len(changes)):\n        return changes\n",
        " if place < len(changes)):\n        return None\n",
        REPORTS,
    ),
    Mutant(
        "live-flow-that-reports-may-expire",
        "a flow expires without a commit that could report it",
        "core/writes.py",
        "expires=expires_ms is not None and not ends)",
        "expires=False)",
        REPORTS,
    ),
    Mutant(
        "spawned-flow-reports-nothing",
        "a flow that is spawned does not know the condition that waits for it",
        "worker/runs.py",
        "            set_reports_to(child, named)\n",
        "",
        REPORTS,
    ),
    Mutant(
        "death-counted-against-neighbours",
        "a process that dies costs each flow in it an attempt",
        "worker/steps.py",
        "    alone = worker.concurrency > 1 and outcomes.discount(flight.flow)\n",
        "    alone = False\n",
        WORKER,
    ),
    Mutant(
        "poison-never-counted",
        "a flow that kills its process alone is run again forever",
        "worker/steps.py",
        "            outcomes.note_alone(flight.flow, flight.handler.retry)\n",
        "            pass\n",
        WORKER,
    ),
    Mutant(
        "suspect-runs-beside-others",
        "a flow that may have killed its process runs beside others again",
        "worker/gate.py",
        "        if self._is_alone or (alone and not impatient and self._running):\n",
        "        if self._is_alone:\n",
        ("tests/contract/test_workers.py", "-k", "gate"),
    ),
    Mutant(
        "lost-at-the-first-refusal",
        "an extension that is refused while the owner ends its claim cancels the handler",
        "core/holding.py",
        "        is_second, self.is_open = self.is_open, True\n",
        "        is_second, self.is_open = True, True\n",
        ("tests/contract/test_holding.py",),
    ),
)
