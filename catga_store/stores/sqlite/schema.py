"""The tables and indexes of a new SQLite file."""

from __future__ import annotations

from catga_store.protocol.requests import PENDING
from catga_store.stores.sqlite.parts import LAY_OUT_PARTS

__all__ = [
    "LAY_OUT",
]

_RECORDS = """
CREATE TABLE {table} (
  id BLOB NOT NULL, step INTEGER NOT NULL,
  version INTEGER NOT NULL, status INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  type TEXT NOT NULL, type_version INTEGER NOT NULL,
  position TEXT NOT NULL, error TEXT, attempts INTEGER NOT NULL,
  owner TEXT, claim TEXT, due_ms INTEGER, expires_ms INTEGER, reports_to TEXT, tags TEXT,
  revision TEXT NOT NULL, commits TEXT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (id, step)
)
"""
_COUNT = """
  INSERT INTO catga_counts VALUES ({row}.type, {row}.status, {by})
  ON CONFLICT (type, status) DO UPDATE SET flows = flows + excluded.flows;
"""
_COME, _GO = _COUNT.format(row="new", by=1), _COUNT.format(row="old", by=-1)
_COUNTS = (
    """
CREATE TABLE catga_counts (
  type TEXT NOT NULL, status INTEGER NOT NULL, flows INTEGER NOT NULL,
  PRIMARY KEY (type, status)
) WITHOUT ROWID
""",
    f"CREATE TRIGGER catga_flows_come AFTER INSERT ON catga_flows BEGIN {_COME} END",
    f"CREATE TRIGGER catga_flows_go AFTER DELETE ON catga_flows BEGIN {_GO} END",
    # An update names these columns only if they change.
    f"CREATE TRIGGER catga_flows_move AFTER UPDATE OF type, status ON catga_flows BEGIN {_GO} {_COME} END",
)
LAY_OUT = (
    """
CREATE TABLE catga_layout (
  version INTEGER NOT NULL, partitions INTEGER NOT NULL, identity TEXT NOT NULL
)
""",
    _RECORDS.format(table="catga_flows"),
    _RECORDS.format(table="catga_progress"),
    """
CREATE TABLE catga_waits (
  id BLOB PRIMARY KEY,
  version INTEGER NOT NULL, status INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  due_ms INTEGER, expires_ms INTEGER,
  revision TEXT NOT NULL, commits TEXT NOT NULL,
  any_of INTEGER NOT NULL, parent BLOB, expected INTEGER NOT NULL, done INTEGER NOT NULL,
  terms TEXT NOT NULL
)
""",
    """
CREATE TABLE catga_items (
  wait BLOB NOT NULL, child BLOB NOT NULL,
  member INTEGER NOT NULL, done INTEGER NOT NULL, success INTEGER NOT NULL,
  payload BLOB NOT NULL,
  PRIMARY KEY (wait, child)
) WITHOUT ROWID
""",
    """
CREATE TABLE catga_commits (
  id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID
""",
    "CREATE INDEX catga_flows_all ON catga_flows (created_ms DESC, id)",
    "CREATE INDEX catga_flows_status ON catga_flows (status, created_ms DESC, id)",
    "CREATE INDEX catga_flows_type ON catga_flows (type, created_ms DESC, id)",
    "CREATE INDEX catga_flows_both ON catga_flows (status, type, created_ms DESC, id)",
    # With the type, so that a worker of one type skips the work of others inside the index.
    "CREATE INDEX catga_flows_due ON catga_flows (due_ms, id, type) WHERE due_ms IS NOT NULL",
    "CREATE INDEX catga_flows_claimed ON catga_flows (due_ms, id, type) WHERE claim IS NOT NULL",
    "CREATE INDEX catga_flows_expires ON catga_flows (expires_ms) WHERE expires_ms IS NOT NULL",
    "CREATE INDEX catga_waits_all ON catga_waits (created_ms DESC, id) WHERE status >= 0",
    "CREATE INDEX catga_waits_status ON catga_waits (status, created_ms DESC, id)",
    """
CREATE INDEX catga_waits_parent ON catga_waits (parent, created_ms DESC, id)
WHERE parent IS NOT NULL AND status >= 0
""",
    """
CREATE INDEX catga_waits_due ON catga_waits (due_ms)
WHERE due_ms IS NOT NULL AND parent IS NOT NULL
""",
    f"""
CREATE INDEX catga_waits_deadline ON catga_waits (due_ms, id)
WHERE due_ms IS NOT NULL AND status = {PENDING}
""",
    "CREATE INDEX catga_waits_expires ON catga_waits (expires_ms) WHERE expires_ms IS NOT NULL",
    # Written with a flow that has tags; its own names, so that both can be named in one query.
    """
CREATE TABLE catga_tags (
  tag BLOB NOT NULL, in_status INTEGER NOT NULL, made_ms INTEGER NOT NULL, flow BLOB NOT NULL,
  at_ms INTEGER,
  PRIMARY KEY (tag, in_status, made_ms DESC, flow)
) WITHOUT ROWID
""",
    "CREATE INDEX catga_tags_all ON catga_tags (tag, made_ms DESC, flow)",
    "CREATE INDEX catga_tags_due ON catga_tags (tag, at_ms, flow) WHERE at_ms IS NOT NULL",
    *LAY_OUT_PARTS,
    *_COUNTS,
)
