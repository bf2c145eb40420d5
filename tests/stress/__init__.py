"""Crowds of users that are cancelled at random, for as long as you like: ``python -m tests.stress pool --help``."""
