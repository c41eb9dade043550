"""What particles say together."""
