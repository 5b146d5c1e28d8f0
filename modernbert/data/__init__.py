"""Shards of token ids → packed, masked batches of a mixture, each with the state that resumes behind it."""

from modernbert.data.loader import LoaderState, MlmBatches
from modernbert.data.mix import Component, Mixture

__all__ = ["Component", "LoaderState", "Mixture", "MlmBatches"]
