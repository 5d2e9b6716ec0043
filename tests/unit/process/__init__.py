"""Tests of `tierstore.process`."""
