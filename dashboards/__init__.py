"""Dashboards, and the rules and alerts of service levels, as code; what is built of it lies beside it and is committed."""
