"""Task and batches → checkpoints: recipe, optimizer, schedule, the one loop, the run folder."""
