import pytest

from models.caption import clean, with_scores


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("A Beautiful Sunset over the sea.", "a beautiful sunset over the sea."),
        ("see https://example.com/a?b=1 now", "see now"),
        ("<b>bold</b> &amp;amp; plain", "bold & plain"),
        ("by @somebody, photo_12.JPG", "by ,"),
        ("mail me@example", "mail me@example"),
        ("wow!!!! so…  “nice” – yes", 'wow! so… "nice" - yes'),
        ("a (red:1.2) car\n\tat 24.5 km/h", "a (red:1.2) car at 24.5 km/h"),
        ("sunset over the sea. aesthetic score: 6.5.", "sunset over the sea. aesthetic score: 6.5."),
    ],
)
def test_clean(text, want):
    assert clean(text) == want and clean(want) == want


def test_scores_are_appended_in_the_references_order():
    text = with_scores("a car", 6.5, 4, "Pan Right")
    assert text == "a car aesthetic score: 6.5. motion score: 4.0. camera motion: pan right."
    assert with_scores(text, 5, 1, "static") == text  # what the prompt says itself stays
    assert with_scores("A car. Motion Score: 4.", 0, 1) == "A car. Motion Score: 4."
    assert with_scores(" a car ") == "a car"
