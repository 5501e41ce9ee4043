"""Answer records and manifests: round trips, refusals, and writes that cannot be half done."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from twohop_lib import records
from twohop_lib.errors import TwohopError


def frame() -> pd.DataFrame:
    item = {"model": "late", "seed": 0, "entity_id": "e1", "entity": "Adder"}
    item |= {"wording": "standard", "intervention": None}
    fact = {"relation": "motto", "question_id": "e1-motto", "accepted": ["hé", "b"]}
    rows = [
        {"condition": "identify", "relation": "", "question_id": "", "answer": "Adder"}
        | {"accepted": ["Adder"], "correct": True},
        fact | {"condition": "by_name", "answer": "hé", "correct": True},
        fact | {"condition": "by_picture", "answer": "", "correct": False},
    ]
    made = pd.DataFrame([item | row for row in rows])[records.ANSWER_SCHEMA.names]
    return made.astype({"intervention": "str"})


def swept(f: pd.DataFrame) -> pd.DataFrame:
    """The same items under an intervention, at two layers."""
    changed = f.assign(intervention="cross-patch", donor_id="e2", until=pd.NA)
    return pd.concat([changed.assign(layer=layer) for layer in (0, 1)])


def test_an_item_may_be_answered_once_clean_and_once_at_each_site(tmp_path):
    parts = [frame(), swept(frame()), frame().assign(wording="other")]
    parts.append(frame().assign(intervention="back-patch"))
    both = pd.concat(parts, ignore_index=True)
    records.write(both, tmp_path / "a")
    back = records.read(tmp_path / "a")
    assert len(back) == 15
    clean = records.untouched(back)
    assert len(clean) == 6 and set(clean["answer"]) == {"Adder", "hé", ""}


def test_round_trip_with_meta(tmp_path):
    path = tmp_path / "new" / "records.parquet"
    records.write(frame(), path, {"benchmark": "heraldry", "n": 3})
    back = records.read(path)
    pd.testing.assert_frame_equal(back, frame(), check_dtype=False)
    assert back.accepted.iloc[1] == ["hé", "b"]
    assert back.correct.dtype == bool
    assert records.read_meta(path) == {"benchmark": "heraldry", "n": 3}


def test_equal_content_gives_equal_bytes(tmp_path):
    records.write(frame(), tmp_path / "a", {"x": 1, "y": 2})
    shuffled = frame()[records.ANSWER_SCHEMA.names[::-1]]
    shuffled.index = [7, 8, 9]
    records.write(shuffled, tmp_path / "b", {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_types_that_pandas_and_numpy_hand_over_are_taken(tmp_path):
    varied = frame()
    varied["correct"] = varied.correct.astype("boolean")
    varied["seed"] = varied.seed.astype(np.int32)
    varied["accepted"] = [np.array(a, dtype=object) for a in varied.accepted]
    records.write(varied, tmp_path / "a")
    pd.testing.assert_frame_equal(records.read(tmp_path / "a"), frame(), check_dtype=False)


def test_extra_columns_are_kept(tmp_path):
    more = frame().assign(logprob=[-0.1, np.nan, -2.0])
    records.write(more, tmp_path / "a")
    back = records.read(tmp_path / "a")
    assert back.logprob.tolist()[::2] == [-0.1, -2.0] and np.isnan(back.logprob[1])


def test_no_rows_round_trip(tmp_path):
    records.write(frame().iloc[:0], tmp_path / "a")
    assert list(records.read(tmp_path / "a").columns) == records.ANSWER_SCHEMA.names


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.drop(columns=["seed", "answer"]), "lack the column.* seed, answer"),
        (lambda f: f.assign(seed=["0", "a", "b"]), "'seed' must be of type int64"),
        (lambda f: f.assign(seed=[0.5, 1, 2]), "'seed' must be of type int64"),
        (lambda f: f.assign(correct=[1, 0, 1]), "'correct' must be of type bool"),
        (lambda f: f.assign(correct=[True, None, False]), "'correct' has 1 empty row"),
        (lambda f: f.assign(answer=["a", None, np.nan]), "'answer' has 2 empty row"),
        (lambda f: f.assign(accepted="motto"), "'accepted' must be of type list"),
        (lambda f: f.assign(accepted=[None, ["a"], ["b"]]), "'accepted' has 1 empty row"),
        (lambda f: f.assign(condition="by_pictures"), "did you mean 'by_picture'"),
        (lambda f: pd.concat([f, f.iloc[1:2]]), "1 answer record.* repeat .*by_name, e1-motto"),
        (lambda f: f.assign(extra=[1, "a", 2.0]), "extra column 'extra' mixes types"),
        (lambda f: pd.concat([f, f.iloc[1:2]]).assign(logprob=[0.1, 0.2, 0.3, 0.4]), "1 answer"),
        (lambda f: pd.concat([swept(f)] * 2), "6 answer record.* repeat"),
    ],
)
def test_invalid_records_are_refused_in_a_sentence(tmp_path, change, sentence):
    path = tmp_path / "records.parquet"
    with pytest.raises(TwohopError, match=sentence):
        records.write(change(frame()), path)
    assert not list(tmp_path.iterdir())


def test_reading_what_is_absent_or_foreign(tmp_path):
    with pytest.raises(TwohopError, match="no records at"):
        records.read(tmp_path / "none.parquet")
    (tmp_path / "text").write_text("hello")
    for reader in (records.read, records.read_meta, records.read_frame):
        with pytest.raises(TwohopError, match="not a Parquet file"):
            reader(tmp_path / "text")
    records.write_frame(pd.DataFrame({"layer": [1]}), tmp_path / "other")
    with pytest.raises(TwohopError, match="other holds no valid answer records: .*lack"):
        records.read(tmp_path / "other")


def test_any_tidy_frame_round_trips(tmp_path):
    sweep = pd.DataFrame({"layer": [0, 1], "effect": [0.5, np.nan], "tokens": [["a"], []]})
    records.write_frame(sweep, tmp_path / "a", {"kind": "sweep"})
    pd.testing.assert_frame_equal(records.read_frame(tmp_path / "a"), sweep)
    assert records.read_meta(tmp_path / "a") == {"kind": "sweep"}


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "records.parquet"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), records.atomic_path(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["records.parquet"]


def manifest(**changes) -> records.Manifest:
    given = {
        "models": [records.ModelEntry(role="vlm", id="late", dtype="float32")],
        "seeds": [0, 1],
        "parameters": {"n": 3, "path": Path("/somewhere")},
        "benchmark": "heraldry",
        "benchmark_hash": "abc",
        "command": "twohop rerun",
        "started": 0.0,
    }
    return records.Manifest.collect(**(given | changes))


def test_manifest_round_trip(tmp_path):
    written = manifest()
    written.write(tmp_path / "manifest.json")
    assert records.Manifest.read(tmp_path / "manifest.json") == written
    raw = json.loads((tmp_path / "manifest.json").read_text())
    assert raw["library_hash"] == records.library_hash()
    assert raw["versions"]["python"].startswith("3.")
    assert "pyarrow" in raw["versions"]
    assert raw["wall_time_s"] > 0 and raw["peak_memory_bytes"] > 1_000_000
    assert raw["parameters"] == {"n": 3, "path": "/somewhere"}


def test_manifest_refusals(tmp_path):
    with pytest.raises(TwohopError, match="no manifest at"):
        records.Manifest.read(tmp_path / "none.json")
    (tmp_path / "m.json").write_text('{"models": []}')
    with pytest.raises(TwohopError, match="m.json is not a manifest .*seeds"):
        records.Manifest.read(tmp_path / "m.json")
    (tmp_path / "m.json").write_text("not json")
    with pytest.raises(TwohopError, match="not a manifest"):
        records.Manifest.read(tmp_path / "m.json")


def test_model_entry_is_read_off_a_loaded_model():
    class Quantisation:
        def to_dict(self):
            return {"load_in_4bit": True}

    class Config:
        _name_or_path = "org/model"
        _commit_hash = "deadbeef"
        quantization_config = Quantisation()

    class Model:
        config = Config()
        dtype = "torch.bfloat16"

    entry = records.ModelEntry.of("vlm", Model(), processor=[])
    assert entry.model_dump() == {
        "role": "vlm",
        "id": "org/model",
        "revision": "deadbeef",
        "processor": "list",
        "dtype": "bfloat16",
        "quantisation": '{"load_in_4bit": true}',
    }


def test_library_hash_follows_source_files_only(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "sub" / "b.py").write_text("y = 1\n")
    first = records.library_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("no source")
    (tmp_path / "a.py").write_bytes(b"x = 1\r\n")
    assert records.library_hash(tmp_path) == first
    (tmp_path / "sub" / "b.py").write_text("y = 2\n")
    second = records.library_hash(tmp_path)
    (tmp_path / "sub" / "b.py").rename(tmp_path / "sub" / "c.py")
    assert len({first, second, records.library_hash(tmp_path)}) == 3
