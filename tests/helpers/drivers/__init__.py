"""Programs that tests start by torchrun."""
