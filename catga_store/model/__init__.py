"""What users hold: flow snapshots, wait conditions, ForEach progress, and listings of them."""
