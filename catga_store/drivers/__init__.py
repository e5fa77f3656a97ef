"""The drivers: who performs transport requests, by blocking or by awaiting."""
