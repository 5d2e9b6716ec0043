"""Tests of what the stores on PostgreSQL share."""
