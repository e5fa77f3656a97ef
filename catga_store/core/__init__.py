"""The logic of the library, written once and without I/O: generators that yield requests to a store."""
