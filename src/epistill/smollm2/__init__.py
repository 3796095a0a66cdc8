"""A real pretrained model, SmolLM2-135M-Instruct, taught to search in words. `docs/smollm2.md`."""
