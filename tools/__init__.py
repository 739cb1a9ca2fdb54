"""For developers: the demo command, hosts to run it in, and the training of the bundled model."""
