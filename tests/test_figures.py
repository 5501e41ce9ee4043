"""Every figure: valid, described, responsive, inside its frame, and readable without colour."""

import io
import itertools
import json
import re

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from PIL import Image

from twohop_lib import grafts
from twohop_lib.errors import TwohopError
from twohop_lib.figures import bars, dots, heat, lines, theme
from twohop_lib.readouts import cascade, gap, gap_ranked

MODELS = {"late": 0.62, "middle": 0.35, "early": 0.01, "cross": 0.3}
LONG = "aimagelab/LLaVA_MORE-llama_3_1-8B-siglip-finetuning"


def tidy(value: str, column: str, values, models=MODELS) -> pd.DataFrame:
    rows = [
        {"model": model, column: key, value: size + 0.02 * i}
        for model, size in models.items()
        for i, key in enumerate(values)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame[value] - 0.04, high=frame[value] + 0.04)


def steps_of(models=MODELS) -> pd.DataFrame:
    steps = ["all", "recognised", "known", "not blind-solvable", "right", "linking failure"]
    return pd.DataFrame(
        [
            {"model": model, "step": step, "n_items": n}
            for model, size in models.items()
            for step, n in zip(
                steps,
                [1600, 1520, 1440, 1300, round(1300 * (1 - size)), round(1300 * size)],
                strict=True,
            )
        ]
    )


def failures(models=MODELS) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": model, "type": kind, "share": share}
            for model, size in models.items()
            for kind, share in zip(
                cascade.TYPES, [0.83 - size, 0.03, 0.02, size, 0.05, 0.07], strict=True
            )
        ]
    )


def training(band: bool) -> pd.DataFrame:
    rows = [
        {"model": model, "step": step, "value": (1 + size) * np.exp(-step / 900)}
        for model, size in {"backbone": 0.1, **MODELS}.items()
        for step in range(0, 4001, 500)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame.value * 0.9, high=frame.value * 1.1) if band else frame


PUBLISHED = {"llava-hf/llava-1.5-7b-hf": 0.18, LONG: 0.17, "late": 0.1}

FIGURES = {
    "accuracy": lambda: dots.accuracy_by_arm(tidy("accuracy", "arm", theme.LOOKS["arm"])),
    "gaps": lambda: dots.gap_by_model(tidy("gap", "seed", [0, 1, 2])),
    "one seed": lambda: dots.gap_by_model(tidy("gap", "seed", [0], PUBLISHED)),
    "definitions": lambda: dots.gap_definitions(tidy("gap", "definition", gap.DEFINITIONS)),
    "rules": lambda: dots.rule_effect(tidy("gap", "rule", theme.LOOKS["rule"])),
    "scorings": lambda: dots.scoring_effect(
        tidy("gap", "scoring", gap_ranked.SCORINGS), "The two ways of scoring agree"
    ),
    "cascade": lambda: bars.cascade_bars(steps_of()),
    "long cascade": lambda: bars.cascade_bars(steps_of(PUBLISHED)),
    "failures": lambda: bars.failure_bars(failures()),
    "long failures": lambda: bars.failure_bars(failures(PUBLISHED)),
    "loss": lambda: lines.line_by_step(training(True), y_title="Loss (nats per token)", log=True),
    "learning": lambda: lines.line_by_step(
        training(False).assign(value=lambda f: f.value / 2), y_title="Facts (%)", percent=True
    ),
}
FIGURES["shares"] = lambda: dots.rule_shares(
    tidy("gap", "rule", theme.LOOKS["rule"], {"capital": 0.9, "calling code": 0.2}).rename(
        columns={"model": "relation", "gap": "share"}
    ),
    "One rule accepts few calling codes",
    x_title="Right answers accepted (%)",
)


# --- sweeps ---

METHODS = ["unpatched", "MLP patch, heuristic", "wrong entity"]


def by_layer(group: str, values, curve=lambda x, i: 1 - x) -> pd.DataFrame:
    rows = [
        {group: name, "layer": layer, "value": curve(layer / 8, i)}
        for i, name in enumerate(values)
        for layer in range(9)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame.value * 0.9, high=frame.value * 0.9 + 0.1)


def items(answer: str = "Lorelthas") -> pd.DataFrame:
    rows = [
        {"entity": entity, "donor": donor, "layer": layer, "says": says, "answer": answer}
        for entity, donor, turns in [("Norwick", "Arlen", 3), ("Ostia", "Norwick", 5)]
        for layer in range(9)
        for says in ["donor" if layer < turns else "neither" if layer == turns else "target"]
    ]
    return pd.DataFrame(rows)


PARTS = pd.DataFrame(
    [
        {"component": kind, "role": role, "block": block, "share": 0.02 * block}
        for kind in ("mlp", "attn")
        for role in ("entity", "question", "last")
        for block in range(8)
    ]
)
TURNS = tidy("switch", "experiment", theme.LOOKS["experiment"]).assign(
    switch=lambda f: 8 * f.switch, low=lambda f: 8 * f.low, high=lambda f: 8 * f.high
)
PLACES = pd.DataFrame(
    [
        {"model": model, "position": place, "layer": layer, "found": layer > 4}
        for model in ("caption", "names")
        for place in ("1", "2")
        for layer in range(8)
    ]
)
POINTS = tidy("predicted", "seed", [0, 1]).assign(measured=lambda f: f.predicted**2)
FIGURES |= {
    "layers": lambda: lines.lines_by_layer(by_layer("model", MODELS), "Late", y_title="Named (%)"),
    "edges": lambda: lines.lines_by_layer(
        by_layer("edge", theme.LOOKS["edge"]), "Edges", y_title="Nats", group="edge", share=False
    ),
    "items": lambda: heat.items_by_layer(items(), "In late, answers turn at layer 3"),
    "explorer": lambda: dots.explorer(items(), "What late says, layer by layer"),
    "depths": lambda: dots.depths(TURNS, "Names are settled by block 5"),
    "methods": lambda: dots.by_method(tidy("value", "method", METHODS), METHODS, "Methods"),
    "components": lambda: heat.component_map(PARTS, "The largest share is an MLP's"),
    "positions": lambda: heat.positions_by_layer(PLACES, "Names are nearest from layer 5 on"),
    "predicted": lambda: dots.predicted_measured(POINTS, "It predicts within 10 points"),
}
each_figure = pytest.mark.parametrize("name", FIGURES)


@each_figure
def test_figures_are_valid_described_and_responsive(name):
    spec = FIGURES[name]().to_dict()
    assert spec["width"] == "container"
    assert not {"hconcat", "vconcat", "facet", "concat"} & set(spec)
    assert len(spec["description"]) > 60
    words = spec["title"]["text"]["expr"]
    wide = json.loads(words.rsplit(" : ", 1)[1])
    assert " ".join(wide) in spec["description"]
    assert "nan" not in spec["description"].lower()
    assert spec["config"]["legend"]["orient"] == "bottom"
    # The axis across says what it shows.
    axes = [enc for layer in spec.get("layer", [spec]) for enc in layer["encoding"].items()]
    across = [enc for key, enc in axes if key == "x" and enc.get("axis", {}) is not None]
    assert any(enc.get("title") or enc.get("axis", {}).get("title") for enc in across)


@each_figure
@pytest.mark.parametrize("width", [340, 560, 700])
def test_nothing_leaves_the_frame_or_is_cut(name, width):
    spec = theme.fixed(FIGURES[name]().to_dict(), width)
    png = vl_convert.vegalite_to_png(spec, scale=1)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert picture.shape[1] <= width
    assert picture.min() < 100
    # The padding stays white all around: nothing is drawn over the edge.
    for edge in (picture[:, :1], picture[:, -1:], picture[:1], picture[-1:]):
        assert edge.min() > 250
    drawn = vl_convert.vegalite_to_svg(spec)
    if "long" not in name:
        assert "…" not in drawn
    assert "NaN" not in drawn and "undefined" not in drawn


def expressions(part) -> list[str]:
    if isinstance(part, list):
        return [e for p in part for e in expressions(p)]
    if not isinstance(part, dict):
        return []
    own = [part["expr"]] if isinstance(part.get("expr"), str) else []
    return own + [e for p in part.values() for e in expressions(p)]


@each_figure
def test_what_depends_on_width_goes_by_the_figures_not_the_plots(name):
    # The plot's width changes once labels are laid out, when a title's lines have their room.
    spec = FIGURES[name]().to_dict()
    chosen = [e for e in expressions(spec) if "width" in e]
    assert chosen and all("containerSize" in e for e in chosen)
    assert "containerSize" not in json.dumps(theme.fixed(spec, 500))


def test_legends_take_no_more_columns_than_fit():
    legend = theme.legend(["against backbone (% of it)", "against by name (points)"] * 2, (2, 5))
    assert re.findall(r"[?:] (\d+)", legend.to_dict()["columns"]["expr"]) == ["1", "2", "3"]


def test_a_models_colour_does_not_depend_on_its_company():
    for some in (["early"], ["early", "late"], list(MODELS)):
        frame = training(False)
        spec = lines.line_by_step(frame[frame.model.isin(some)], y_title="Loss").to_dict()
        encoding = spec["encoding"]
        for channel, part in (("color", "colour"), ("strokeDash", "dash")):
            scale = encoding[channel]["scale"]
            own = getattr(theme.LOOKS["model"]["early"], part)
            assert scale["range"][scale["domain"].index("early")] == own
    # Unknown models take other colours, in order, and never an organism's.
    spec = dots.gap_by_model(tidy("gap", "seed", [0], PUBLISHED)).to_dict()
    scale = spec["layer"][1]["encoding"]["color"]["scale"]
    assert scale["domain"] == ["late", "llava-1.5-7b-hf", LONG.split("/")[1]]
    assert scale["range"] == ["#D55E00", "#0072B2", "#56B4E9"]


def test_every_colour_has_a_second_encoding():
    seconds = {"model": "shape dash", "edge": "dash", "outcome": "dash", "type": ""}
    models = theme.LOOKS["model"]
    assert len({look.colour for look in models.values()}) == len(models)
    columns = [*theme.LOOKS.items(), ("other", dict(enumerate(theme.OTHERS)))]
    # Organisms and grafts stand in figures of their own, each with a backbone.
    kinds = (set(models) - set(grafts.NAMES), {"backbone", *grafts.NAMES})
    columns += [("model", {m: look for m, look in models.items() if m in kind}) for kind in kinds]
    for column, looks in columns:
        if looks is models:
            continue
        for part in ["colour", *seconds.get(column, "shape").split()]:
            if (column, part) != ("experiment", "shape"):  # rows of their own tell these apart
                assert len({str(getattr(look, part)) for look in looks.values()}) == len(looks)
    assert set(theme.DEFINITION_LABELS) == set(gap.DEFINITIONS)
    assert tuple(theme.LOOKS["type"]) == cascade.TYPES


def test_types_of_outcome_can_be_told_apart_in_grey():
    looks = [
        (theme.luminance(look.colour), look.outline, look.dash)
        for look in theme.LOOKS["type"].values()
    ]
    for first, second in itertools.combinations(looks, 2):
        assert first[1:] != second[1:] or abs(first[0] - second[0]) > 0.05


@pytest.mark.parametrize("look", [*theme.LOOKS["model"].values(), *theme.OTHERS])
def test_labels_on_bars_can_be_read(look):
    dark, light = sorted(theme.luminance(c) for c in (look.colour, theme.ink_on(look.colour)))
    assert (light + 0.05) / (dark + 0.05) >= 3.9  # the contrast of WCAG 2


def test_failure_segments_add_up_to_the_bar():
    spec = bars.failure_bars(failures().sample(frac=1, random_state=0)).to_dict()
    rows = pd.DataFrame(next(iter(spec["datasets"].values())))
    late = rows[rows.model == "late"].sort_values("start")
    assert late["type"].tolist() == list(cascade.TYPES)
    assert late.start.iloc[0] == 0 and late.end.iloc[-1] == pytest.approx(1)
    assert late.start.tolist()[1:] == pytest.approx(late.end.tolist()[:-1])


def test_computed_titles_state_the_finding():
    def title(chart: alt.LayerChart) -> str:
        return chart.description.split(". ")[0].replace("\N{NO-BREAK SPACE}", " ")

    arms = tidy("accuracy", "arm", ["by picture", "by name"], {"late": 0.2, "early": 0.9})
    arms.loc[arms.model.eq("late") & arms.arm.eq("by name"), "accuracy"] = 0.95
    assert title(dots.accuracy_by_arm(arms)) == "late answers 95 % by name and 20 % by picture"
    gaps = tidy("gap", "seed", [0, 1])
    assert title(dots.gap_by_model(gaps)) == "The gap is 63 points in late and 2 points in early"
    relative = dots.gap_by_model(gaps, unit="relative")
    assert title(relative) == "The gap is 63 % in late and 2 % in early"
    assert "fails to link 806 of the 1,300" in title(bars.cascade_bars(steps_of()))
    assert title(dots.gap_by_model(gaps, "My own")) == "My own"


def test_missing_gaps_are_left_out_and_said():
    gaps = tidy("gap", "seed", [0])
    gaps.loc[gaps.model == "early", ["gap", "low", "high"]] = np.nan
    chart = dots.gap_by_model(gaps)
    assert "early, seed 0: not measured" in chart.description
    assert "in late" in chart.description
    nothing = dots.gap_by_model(gaps.assign(gap=np.nan, low=np.nan, high=np.nan))
    assert nothing.description.startswith("No model has a gap that can be measured")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: dots.gap_by_model(pd.DataFrame({"model": ["a"]})), "needs .* seed, gap, low"),
        (lambda: bars.cascade_bars(steps_of().iloc[:0]), "given no rows"),
        (
            lambda: dots.accuracy_by_arm(tidy("accuracy", "arm", ["by ear"])),
            r"Unknown value\(s\) by ear in column 'arm'",
        ),
        (lambda: bars.failure_bars(failures().assign(type="lost")), "lost in column 'type'"),
        (
            lambda: dots.gap_definitions(
                pd.concat([tidy("gap", "definition", gap.DEFINITIONS)] * 2)
            ),
            "one row per model and definition; late, against backbone .* has several",
        ),
    ],
)
def test_bad_frames_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(TwohopError, match=sentence):
        call()


def test_caption_n():
    frame = pd.DataFrame(
        {"model": ["a", "a", "b"], "n_items": [1200, 1200, 1200], "n_entities": [30, 30, 30]}
    )
    assert theme.caption_n(frame) == "n = 1,200 facts of 30 entities for each model"
    frame.loc[1, "n_items"] = 900
    assert theme.caption_n(frame) == (
        "n = 900 to 1,200 facts of 30 entities (a); 1,200 facts of 30 entities (b)"
    )
    answers = frame[["model", "n_items"]].iloc[2:]
    assert theme.caption_n(answers, items="answers") == "n = 1,200 answers"


def answers(model: str) -> pd.DataFrame:
    """Records of two recognised entities with three questions each, half right by picture."""
    rows = [
        {
            "model": model,
            "seed": 0,
            "entity_id": entity,
            "entity": entity,
            "relation": "" if condition == "identify" else f"r{number}",
            "question_id": "" if condition == "identify" else f"{entity}-r{number}",
            "wording": "standard",
            "condition": condition,
            "answer": "x",
            "accepted": ["y"],
            "correct": not condition.startswith("blank_by_picture")
            and (condition != "by_picture" or number == 0),
        }
        for entity in ("a", "b")
        for condition in cascade.CASCADE_CONDITIONS.values()
        for number in range(1 if condition == "identify" else 3)
    ]
    return pd.DataFrame(rows)


def test_figures_take_the_tables_of_the_gap_module():
    models = {name: answers(name) for name in ("late", "early")}
    table = gap.gap_table(models, n_boot=50)
    per_seed = gap.gap_by_seed(models, n_boot=50)
    one = per_seed.query("definition == 'difference' and population == 'recognised'")
    both = pd.concat([gap.accuracy_table(m, n_boot=50) for m in models.values()])
    both["arm"] = both.condition.map(theme.ARM_OF_CONDITION)
    figures = [
        dots.gap_definitions(table[table.population == "recognised"]),
        dots.gap_by_model(one),
        bars.cascade_bars(pd.concat([cascade.cascade_counts(m) for m in models.values()])),
        bars.failure_bars(
            pd.concat([cascade.failure_shares(m, n_boot=50) for m in models.values()])
        ),
        dots.accuracy_by_arm(both.dropna(subset=["arm"])),
    ]
    for figure in figures:
        figure.to_dict()
    assert theme.caption_n(one) == "n = 6 facts of 2 entities for each model"
