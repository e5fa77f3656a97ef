"""For authors of stores: what a store is asked, how it replies, and what its records are keyed by."""
