"""epistill: a laboratory for on-policy self-distillation of language models."""
