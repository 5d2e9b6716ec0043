"""What stores of objects in buckets share."""
