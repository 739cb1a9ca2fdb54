"""What the registry shows of the pack: its limits are those of https://docs.comfy.org/registry/specifications."""

import re
from datetime import date
from pathlib import Path

import pytest
from PIL import Image

from tools import brand

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
FACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMFY = FACTS["tool"]["comfy"]


def picture(key: str) -> Path:
    """The file of the repository that a registry picture's address leads to."""
    repository = FACTS["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    start = f"https://raw.githubusercontent.com/{repository}/main/"
    assert COMFY[key].startswith(start)
    return ROOT / COMFY[key].removeprefix(start)


def test_the_icon_is_a_square_of_at_most_400():
    with Image.open(picture("Icon")) as image:
        assert image.width == image.height <= 400


def test_the_banner_is_21_to_9():
    with Image.open(picture("Banner")) as image:
        assert image.width * 9 == image.height * 21


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_the_pictures_are_those_that_are_drawn(name):
    drawn, path = getattr(brand, name)(), picture(name.title())
    with Image.open(path) as image:
        a, b = (x.convert("RGB").resize((84, 36)).tobytes() for x in (image, drawn))
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) < 40  # another Pillow has other edges


def test_the_version_is_the_changelogs_newest_and_has_a_day():
    version, day = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M).groups()
    assert version == FACTS["project"]["version"] and date.fromisoformat(day)


def test_what_the_registry_asks_for_is_there():
    assert {"name", "version", "description", "license", "classifiers"} <= set(FACTS["project"])
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= set(COMFY)
