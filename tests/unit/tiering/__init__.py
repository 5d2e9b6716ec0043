"""Tests: tiering."""
