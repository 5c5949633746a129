"""Generative deep linear networks trained with the Bures-Wasserstein loss."""

__version__ = "0.1.0"
