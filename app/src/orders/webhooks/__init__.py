"""Webhooks: events sent to whoever asked for them, signed, again until they arrive, and to public addresses only."""
