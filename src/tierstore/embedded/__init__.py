"""The embedded database engine under the one-box backends."""
