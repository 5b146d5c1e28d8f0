"""Checkpoint → vectors of texts."""

from modernbert.retrieval.encode import encode

__all__ = ["encode"]
