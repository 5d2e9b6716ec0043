"""Decides where an object lives, and keeps the two tiers in step: the commit protocol."""
