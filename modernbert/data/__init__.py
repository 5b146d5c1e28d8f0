"""Shards of token ids → packed, masked batches, each with the state that resumes behind it."""

from modernbert.data.loader import LoaderState, MlmBatches

__all__ = ["LoaderState", "MlmBatches"]
