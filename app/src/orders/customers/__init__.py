"""What customers say of themselves: name and postal address, sealed."""
