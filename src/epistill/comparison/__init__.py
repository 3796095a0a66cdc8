"""Two sets of traces, paired by problem. No model, no torch."""
