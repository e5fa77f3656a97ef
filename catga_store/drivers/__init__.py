"""The drivers: they perform transport requests, by blocking or by awaiting.

| module | what it does |
|---|---|
| `blocking` | the driver of blocking stores: memory, SQLite, Redis |
| `embedded_async` | the async driver of memory and SQLite |
| `asyncio_driver` | the driver of a store on a server, on an asyncio loop |
| `any_loop` | the same for an `AsyncStore`: on the caller's loop, or under trio through the portal |
| `portal` | an asyncio loop in a thread, for blocking code and trio |
| `cancellation` | writes that run to their end although their caller is cancelled |
| `links`, `in_flight` | what the links to servers share |
| `redis_blocking`, `redis_cluster_blocking` | links to Redis for blocking code |
| `redis_asyncio`, `redis_cluster_asyncio`, `redis_multiplexed` | links to Redis on asyncio |
| `redis_clients`, `redis_packing`, `redis_failures` | clients of redis-py, commands as bytes, failures to connect |
| `nats_asyncio`, `nats_inbox`, `nats_connecting` | the link to NATS, its replies, and its connection |

Only `drivers` and `stores/redis` import redis, only `drivers` and `opening` import nats; `opening` imports
redis for type checking only. `tests/meta/test_layers.py` checks that.
"""
