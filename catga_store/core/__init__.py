"""The logic of the library, written once and without I/O: generators that yield requests to a store.

| module | what it does |
|---|---|
| `records` | operations on single records, outside a session |
| `sessions` | operations in a session, and transactions |
| `unit_of_work` | what a session has loaded and queued, and the commit that it becomes |
| `writes` | the write of one record: its version, due time, claim, attempts and expiry |
| `parts`, `raw_parts` | parts and logs; parts of bytes without an object for each, for adapters |
| `commits`, `receipts` | sending a commit, finding a lost outcome; what a commit did |
| `conflicts` | what a store refused, as errors |
| `claims` | claiming, extending and releasing flows |
| `claim_candidates`, `claim_plans` | reading what a claim depends on; deciding what it does |
| `listings`, `upkeep` | listings and counts; operations on a store as a whole |
| `envelope` | records to heads and bodies, and back |
| `state_types` | which flows a claim wants by the type of their state |
| `arguments`, `settings`, `options` | checks of arguments; the settings of a store; shared keyword options |
| `context` | what all operations of one store share |
| `base_store`, `base_async_store`, `base_session` | the base classes of the APIs |
"""
