"""The console: a store in the browser, as an ASGI application.

`catga-store console URL` serves the console by itself; `app(store)` can be mounted in your own program, under
any path. The console shows what the public operations of a store return, and uses these operations to change
flows. Its only state of its own is the numbers of the last minutes, which the overview draws.

| module | what it holds |
|---|---|
| `application` | `app`, the routes, and errors as pages |
| `safety` | who may read and write: the token, the session cookie, CSRF, the headers of every reply |
| `asking` | the store, blocking or async, as one that is awaited |
| `forms` | what a request says: filters, ids, versions, the fields of a form |
| `rendering` | templates, and documents as JSON |
| `trees` | states as trees and texts that a page can hold |
| `views/` | one module for each page, and for each group of actions |
| `static/` | the style sheet, `console.js`, and htmx with its licence |

Every page works without scripts. With them, `console.js` listens to server-sent events while the page
is visible and has htmx replace what has changed.
"""

from __future__ import annotations

from catga_store.console.application import Console
from catga_store.console.application import app
from catga_store.console.context import Redact

__all__ = ["Console", "Redact", "app"]
