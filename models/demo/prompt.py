"""The demo's stand-in for a text encoder.

Words of a small vocabulary to one-hot embeddings, one row per kind of word.
"""

import torch

COLOURS = {  # name -> RGB in [0, 1]
    "red": (0.90, 0.15, 0.12),
    "yellow": (0.92, 0.84, 0.12),
    "green": (0.15, 0.78, 0.20),
    "cyan": (0.12, 0.80, 0.85),
    "blue": (0.15, 0.28, 0.92),
    "magenta": (0.88, 0.16, 0.82),
}
SHAPES = ("ball", "box", "ring")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}  # (dx, dy), y grows downwards
FILLERS = ("a", "moving")
KINDS = {"colour": tuple(COLOURS), "shape": SHAPES, "direction": tuple(DIRECTIONS)}
VOCABULARY = tuple(word for words in KINDS.values() for word in words) + FILLERS

TEXT_DIM = 16  # one-hot over the 13 content words; the last three channels say "any colour / shape / direction"
TEXT_TOKENS = len(KINDS)
_WORDS = [word for words in KINDS.values() for word in words]


def parse(prompt: str) -> dict[str, str | None]:
    """Prompt ("red ball moving right") to words by kind ({"colour": "red", ...}); None means any.

    Raises:
        ValueError: a word is not in the vocabulary, or two words are of one kind.
    """
    found: dict[str, str | None] = dict.fromkeys(KINDS)
    for word in prompt.lower().replace(",", " ").split():
        if word in FILLERS:
            continue
        kind = next((kind for kind, words in KINDS.items() if word in words), None)
        if kind is None:
            raise ValueError(f"the demo model does not know the word {word!r}; it knows: {', '.join(VOCABULARY)}")
        if found[kind] is not None:
            raise ValueError(f"{found[kind]!r} and {word!r} are both a {kind}: the demo model takes one of each kind")
        found[kind] = word
    return found


def embed(prompts: list[str]) -> torch.Tensor:
    """Prompts to text embeddings (B, 3, 16); the empty prompt (the uncond of CFG) says "any" three times."""
    out = torch.zeros(len(prompts), TEXT_TOKENS, TEXT_DIM)
    for row, prompt in zip(out, prompts, strict=True):
        for token, word in enumerate(parse(prompt).values()):
            row[token, _WORDS.index(word) if word else len(_WORDS) + token] = TEXT_DIM**0.5
    return out
