"""Checkpoint → scores, and encoder → speed, memory and parity, with what their reader must know of the machine."""
