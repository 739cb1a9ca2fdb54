"""A tiny text-to-video DiT (Wan 2.1 architecture), trained on procedurally made clips and bundled with the pack."""
