"""A benchmark at a glance: a page with every entity's picture, questions and answers."""

from __future__ import annotations

import base64
import io
from html import escape

from twohop_lib.benchmark.schema import Benchmark, Question

THUMBNAIL = 288  # pixels along the longer side: twice what is shown, for dense screens

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.45 system-ui,sans-serif;margin:1rem;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(18rem,100%),1fr));gap:1rem}
article{border:1px solid #8886;border-radius:6px;padding:.8rem}
img{width:9rem;height:9rem;object-fit:contain;display:block}
h2{font-size:1.1rem;margin:.5rem 0}
dl{margin:0}dt{font-weight:600}dd{margin:0}
.answer{margin:0 0 .7rem}
.answer::before{content:"→ "}
"""


def contact_sheet(benchmark: Benchmark, limit: int = 60) -> str:
    """A self-contained HTML page; the first wording of each fact, ``limit`` entities at most."""
    facts: dict[str, dict[str, Question]] = {}
    for q in benchmark.questions:
        facts.setdefault(q.entity_id, {}).setdefault(q.relation, q)
    cards = [_card(benchmark, list(facts[e].values())) for e in benchmark.entities()[:limit]]
    shown = f"{len(cards)} of {len(facts)} entities; {len(benchmark.questions)} questions in all"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(benchmark.name)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(benchmark.name)}</h1><p>{shown}</p>"
        f'<main class="grid">{"".join(cards)}</main></body></html>\n'
    )


def _card(benchmark: Benchmark, questions: list[Question]) -> str:
    first = questions[0]
    rows = "".join(
        f"<dt>{escape(q.question_by_name)}</dt><dd>{escape(q.question_by_picture)}</dd>"
        f'<dd class="answer">{escape(" · ".join(q.answers))}</dd>'
        for q in questions
    )
    return (
        f'<article><img src="{_data_uri(benchmark, first)}" alt="{escape(first.entity)}">'
        f"<h2>{escape(first.entity)}</h2><dl>{rows}</dl></article>"
    )


def _data_uri(benchmark: Benchmark, question: Question) -> str:
    picture = benchmark.image(question)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
