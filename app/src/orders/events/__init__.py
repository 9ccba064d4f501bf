"""What happens to orders, told to whoever listens."""
