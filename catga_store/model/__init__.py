"""The objects that users hold: flow snapshots, wait conditions, ForEach progress, and listings."""
