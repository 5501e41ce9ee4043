"""Citations in notebooks and on a run's pages: names and years, not keys."""

from __future__ import annotations

import re
from pathlib import Path

from twohop_lib.chapter.citations import REFERENCES, cited

ROOT = Path(__file__).parents[1]


def test_a_citation_reads_as_the_book_prints_it():
    assert cited("venhoff2025toolate") == "Venhoff et al. (2025)"
    assert cited("wilcoxon1945individual", in_text=False) == "(Wilcoxon, 1945)"
    two = cited("cohen2025performance, liu2023llava", in_text=False)
    assert two == "(Cohen et al., 2025; Liu et al., 2023)"
    assert cited("nobody1999") == "nobody1999"


def test_every_reference_has_a_name_and_a_year():
    keys = re.findall(r"^@\w+\{([^,]+),", REFERENCES.read_text("utf-8"), re.MULTILINE)
    assert len(keys) > 5
    assert all(re.fullmatch(r"\D+ \(\d{4}\)", cited(key)) for key in keys)
