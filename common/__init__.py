"""Shared library for scene text recognition research."""

__version__ = "0.1.0"
