"""How a store is opened: by URL, or by the class of its kind, blocking or awaiting."""
