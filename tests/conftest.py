"""Settings for all tests."""

from hypothesis import settings

# Machines under load are slow now and then; the run as a whole has its own time limit.
settings.register_profile("tierstore", deadline=None, max_examples=60)
settings.load_profile("tierstore")
