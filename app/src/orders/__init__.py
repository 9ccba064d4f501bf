"""The order service: takes orders by way of a queue, and settles them in PostgreSQL."""
