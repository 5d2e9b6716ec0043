"""Tests of the embedded database engine."""
