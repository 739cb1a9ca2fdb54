"""The paper's method (arXiv 2506.00329): a prefix of the blocks is left out, and its last output reused."""
