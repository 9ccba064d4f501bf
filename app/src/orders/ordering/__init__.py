"""Orders: taken by way of a queue, identified by what they order, asked for by their address."""
