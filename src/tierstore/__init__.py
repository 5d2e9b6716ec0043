"""tierstore: a blob store service in two tiers that never loses an acknowledged object."""

__version__ = "0.1.0"
