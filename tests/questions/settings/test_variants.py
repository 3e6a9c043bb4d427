"""How a variant is written, and read again."""

import pytest

from benchlib.questions.settings.variants import Variant, parse_variant


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("baseline", Variant("baseline")),
        ("bf16+channels-last", Variant("bf16+channels-last")),
        ("baseline in 1 step", Variant("baseline", 1)),
        ("fastest-exact in 4 steps", Variant("fastest-exact", 4)),
    ],
)
def test_a_variant_reads_back_what_it_wrote(name, variant):
    assert parse_variant(name) == variant
    assert str(variant) == name
