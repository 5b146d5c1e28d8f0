"""Packed batch → hidden states: the encoder, its attention, its initial weights, its checkpoints."""
