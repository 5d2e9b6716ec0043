"""Real engines for tests: how each is started, and what happens when it fails."""
