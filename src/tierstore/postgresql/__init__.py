"""What the stores on PostgreSQL share: the pool of connections, the schema, the errors."""
