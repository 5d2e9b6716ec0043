"""The wire: HTTP to values and back."""
