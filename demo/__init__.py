"""A tiny text-to-video DiT of the Wan 2.1 architecture, trained on procedurally made clips and bundled with the pack."""
