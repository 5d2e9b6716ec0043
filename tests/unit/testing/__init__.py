"""Tests of what tierstore ships for testing."""
