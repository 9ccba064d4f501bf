"""What happens to orders: from the outbox to the exchange, and from the stream to clients."""
