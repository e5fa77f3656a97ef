"""Records that another program has damaged, on any store that keeps them outside of the process."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from urllib.parse import parse_qs
from urllib.parse import urlsplit

import nats
import redis
from anyio.from_thread import start_blocking_portal

import catga_store as cs

__all__ = ["DAMAGES", "FLOWS", "WAITS", "damage", "seed"]

DAMAGES = {
    "flow-head": "flow head",
    "flow-status": "flow status",
    "flow-body": "flow body",
    "wait-head": "wait head",
    "wait-status": "wait status",
    "wait-children": "wait children",
    "wait-result": "wait result",
    "step-head": "progress head",
    "step-body": "progress body",
}
"""What is damaged of each record of `seed` that is; a status is one that does not exist."""
FLOWS = {"flow-head", "flow-status", "flow-body", "step-head", "step-body", "well", "parent"}
WAITS = {"wait-head", "wait-status", "wait-children", "wait-result", "wait-well"}

_SQL = {
    "flow head": "UPDATE catga_flows SET version = 'x' WHERE id = ?",
    "flow status": "UPDATE catga_flows SET status = 99 WHERE id = ?",
    "flow body": "UPDATE catga_flows SET body = x'7b' WHERE id = ?",
    "wait head": "UPDATE catga_waits SET version = 'x' WHERE id = ?",
    "wait status": "UPDATE catga_waits SET status = 99 WHERE id = ?",
    "wait children": "UPDATE catga_waits SET terms = 'x' WHERE id = ?",
    "wait result": "UPDATE catga_items SET payload = x'7b' WHERE wait = ?",
    "progress head": "UPDATE catga_progress SET version = 'x' WHERE id = ? AND step = 0",
    "progress body": "UPDATE catga_progress SET body = x'7b' WHERE id = ? AND step = 0",
}


def seed(url: str) -> None:
    """Fill a store with flows, steps and conditions, and damage some of them in all of these ways."""
    with cs.open_store(url) as store:
        for flow_id in sorted(FLOWS):
            store.create(cs.FlowSnapshot(flow_id, state={"n": 1}))
            for step in (0, 1):
                store.save_for_each_progress(flow_id, step, cs.ForEachProgress())

        for wait_id in sorted(WAITS):
            wait = cs.WaitCondition(
                wait_id, flow_ids=["child", "other"], parent_flow_id="parent", timeout=timedelta(0)
            )
            store.set_wait_condition(wait)
            store.complete_child(wait_id, "child", result=[1, 2])

    damage(url, DAMAGES)


def damage(url: str, damages: dict[str, str]) -> None:
    """Damage records behind the back of their store: what of each is said by its id."""
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        with closing(sqlite3.connect(urlsplit(url).path[1:])) as connection, connection:
            for record_id, what in damages.items():
                assert connection.execute(_SQL[what], (record_id.encode(),)).rowcount
    elif scheme.startswith("redis"):
        _damage_redis(url, damages)
    else:
        _damage_nats(url, damages)


def _damage_redis(url: str, damages: dict[str, str]) -> None:
    parts = urlsplit(url)
    prefix = parse_qs(parts.query)["prefix"][0].removesuffix(":")
    with closing(redis.Redis.from_url(f"redis://{parts.netloc}/0")) as client:
        for record_id, what in damages.items():
            kind, field = what.split()
            if kind == "progress":
                key, name = f"steps:{record_id}", "h0" if field == "head" else "b0"
            elif field == "result":
                key, name = f"items:{record_id}", "child"
            else:
                key = f"{kind}:{record_id}"
                name = {"status": "head", "children": "terms"}.get(field, field)

            key = f"{{{prefix}:0}}:{key}"
            old = client.hget(key, name)
            assert old is not None, (key, name)
            client.hset(key, name, _damaged_value(field, old))


def _damaged_value(field: str, old: bytes) -> bytes:
    if field == "status":
        begin, version, _, *rest = old.split(b",")
        return b",".join([begin, version, b"99", *rest])

    return old[:3] + b"{" if field == "result" else b"{"


def _damage_nats(url: str, damages: dict[str, str]) -> None:
    parts = urlsplit(url)
    bucket = parse_qs(parts.query)["bucket"][0]

    async def write() -> None:
        client = await nats.connect(f"nats://{parts.netloc}")
        try:
            stream = client.jetstream()
            for record_id, what in damages.items():
                kind, field = what.split()
                subject = {
                    "flow": f"$KV.{bucket}.flow.{record_id}",
                    "progress": f"$KV.{bucket}.progress.{record_id}.0",
                    "wait": f"$KV.{bucket}_wait.{record_id}",
                }[kind]
                old = (await stream.get_last_msg(f"KV_{bucket}", subject)).data or b""
                await stream.publish(subject, _damaged_message(field, old))
        finally:
            await client.close()

    with start_blocking_portal() as portal:
        portal.call(write)


def _damaged_message(field: str, old: bytes) -> bytes:
    head, _, rest = old.partition(b"\n")
    if field == "head":
        return b"{\n" + rest

    if field == "status":
        return old.replace(b'"status":', b'"status":9', 1)

    if field in ("body", "children"):
        return head + b"\n{"

    fields = json.loads(head)
    fields["items"] = [[child, ok, "{", *others] for child, ok, _, *others in fields["items"]]
    return json.dumps(fields).encode() + b"\n" + rest
