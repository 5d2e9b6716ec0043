"""The stores: high-volume rows and long-term blobs, each behind a contract that every backend keeps."""
