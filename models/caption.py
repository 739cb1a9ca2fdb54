"""Prompts as Latte and Open-Sora were trained on: cleaned, and with Open-Sora's scores at the end."""

import html
import re

_URL = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_HANDLE = re.compile(r"(?<!\w)@\w+")
_FILE = re.compile(r"\S+\.(?:jpe?g|png|gif|bmp|webp|mp4|webm|mov)\b", re.IGNORECASE)
_DOUBLE, _SINGLE = "\u201c\u201d\u201e\u00ab\u00bb", "\u00b4`\u2018\u2019"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015"
_QUOTES = str.maketrans(_DOUBLE + _SINGLE + _DASHES, '"' * len(_DOUBLE) + "'" * len(_SINGLE) + "-" * len(_DASHES))
_REPEATED = re.compile(r"([!?.,;:*#_~-])\1{2,}")
_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """Lower case, plain quotes and dashes, and no web addresses, markup, @names or file names.

    Our own short form of the cleaning that the reference pipelines apply; ordinary prompts come out the same.
    """
    text = html.unescape(html.unescape(text)).translate(_QUOTES)
    for pattern in (_URL, _TAG, _HANDLE, _FILE):
        text = pattern.sub(" ", text)
    text = _REPEATED.sub(r"\1", text)
    return _SPACE.sub(" ", text).strip().lower()


def with_scores(text: str, aesthetic: float = 0.0, motion: float = 0.0, camera: str = "") -> str:
    """The prompt with Open-Sora 1.2's suffixes; 0 or "" leaves one out, and so does a prompt that has it already.

    Args:
        aesthetic: Aesthetic score; the model was shown clips of 4 to 7.
        motion: Optical-flow score, 0 to about 20.
        camera: Camera motion in words, such as "pan right", "tilt up" or "zoom in".
    """
    scores = (
        ("aesthetic score", f"{aesthetic:.1f}", aesthetic > 0),
        ("motion score", f"{motion:.1f}", motion > 0),
        ("camera motion", camera.strip().lower(), camera.strip()),
    )
    for name, value, wanted in scores:
        if wanted and f"{name}:" not in text.lower():
            text += f" {name}: {value}."
    return text.strip()
