"""One optimiser step, one loop, checkpoints."""
