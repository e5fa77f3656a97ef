"""LangGraph's checkpoints in a store of this library.

Requires the `langgraph` extra. `layout` says what is stored. `reading`, `writing` and `threads` have every
operation once, as a conversation; `access` is what they share. `saver` is what LangGraph calls, blocking and
async.
"""

from catga_store.langgraph.layout import SEEN
from catga_store.langgraph.layout import StaleThreadError
from catga_store.langgraph.saver import CatgaSaver

__all__ = ["SEEN", "CatgaSaver", "StaleThreadError"]

for _public in (CatgaSaver, StaleThreadError):
    _public.__module__ = "catga_store.langgraph"
