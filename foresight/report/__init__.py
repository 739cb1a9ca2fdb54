"""Pictures, figures and files about runs: pure functions of `RunStats.to_dict()` and of frames; no host."""
