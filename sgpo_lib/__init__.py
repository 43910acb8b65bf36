"""Stackelberg Game Preference Optimization: the vocabulary of the notebooks."""

__version__ = "0.1.0"
