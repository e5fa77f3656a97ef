"""The drivers: who performs wire requests, by blocking or by awaiting."""
