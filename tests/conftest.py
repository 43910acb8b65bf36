"""Test settings shared by all: hypothesis without deadlines, which shared machines cannot keep."""

from hypothesis import settings

settings.register_profile("sgpo", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("sgpo")
