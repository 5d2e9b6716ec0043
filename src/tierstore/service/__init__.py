"""Runs operations: bounded, and to completion even when the caller has gone."""
