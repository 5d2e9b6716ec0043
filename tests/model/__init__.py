"""Walks recorded traces of the implementation through the model of the protocol.

Here, and not in the package: the model is a page of the documentation, which is not shipped, and the walk is of use
only beside it.
"""
