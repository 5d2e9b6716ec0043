"""Settings for all tests, and the engines that they can have."""

from hypothesis import settings

from tests.engines.fixtures import *  # noqa: F403  # because pytest finds fixtures by their names here

# Machines under load are slow now and then; the run as a whole has its own time limit.
settings.register_profile("tierstore", deadline=None, max_examples=60)
settings.load_profile("tierstore")
