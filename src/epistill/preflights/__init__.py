"""What self-distillation would do, measured before training."""
