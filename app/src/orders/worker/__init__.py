"""Settles orders: takes them out of the queues in batches, and acknowledges each batch after its commit."""
