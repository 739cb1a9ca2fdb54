"""`run.py demo`, and the training of the bundled model."""
