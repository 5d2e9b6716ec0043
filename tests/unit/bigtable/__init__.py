"""Tests of what the stores on Bigtable share."""
