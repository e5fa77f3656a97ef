"""The stores: each turns store protocol requests into conversations over transport requests of its own."""
