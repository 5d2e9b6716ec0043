"""Tests: the law suites."""
