import pytest

from nearpeak.errors import UnknownName
from nearpeak.formats import BYTES, FORMATS, code, named


def test_every_spelling_leads_to_one_format():
    spellings = [s for f in FORMATS for s in (f.name, *f.aliases)]
    assert len(spellings) == len(set(spellings))
    assert all(named(s) is FORMATS[code(s)] for s in spellings)


@pytest.mark.parametrize(
    ("name", "bits"), [("bf16", 16), ("fp8", 8), ("int4_wo", 4.125), ("nvfp4", 4.5), ("mxfp4", 4.25)]
)
def test_stored_size_counts_the_scales(name, bits):
    assert BYTES[code(name)] == pytest.approx(bits / 8)


def test_an_unknown_format_names_those_that_come_close():
    with pytest.raises(UnknownName, match="nvfp4"):
        code("nvfp5")
