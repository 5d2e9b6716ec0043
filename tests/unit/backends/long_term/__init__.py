"""Unit tests of the long-term stores."""
