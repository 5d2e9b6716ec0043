"""Law suites: every promise of a contract as a test that every backend must pass."""
