"""What the student says: prompts, models, the sampler."""
