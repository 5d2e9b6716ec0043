"""Tests: high-volume backends."""
