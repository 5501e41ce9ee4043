"""A small data set in the format in which PopVQA is published; its entities are made up."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image, ImageDraw

ENTITIES = {
    "celebs": ["Ada Lindqvist", "Jay Z. Morrow", "José Ñandú", "Mary O'Hara"],
    "landmarks": ["Norwick Tower", "The Old Mill", "Pont d'Orme", "Lake Bee"],
    "paintings": ["The Red Barn", "Étude in Grey", "Night Ferry", "Apple Pie"],
    "brands": ["Zephyrine", "Kolt & Sons", "UK Tea", "Brightly"],
}
#: By type: what is asked of it, by name and by picture, and the answers.
ASKED = {
    "celebs": [
        ("P19", "Where was {} born?", "Where was the subject of this image born?"),
        ("P26", "Who is the spouse of {}?", "Who is the spouse of the subject in this image?"),
    ],
    "landmarks": [
        ("P84", "Who was the architect of {}?", "Who was the architect of the place shown here?"),
        ("P17", "In which country is {}?", "In which country is the place in this image?"),
    ],
    "paintings": [
        ("P170", "Who painted {}?", "Who painted the painting in this image?"),
        ("P276", "Where does {} hang?", "Where does the painting in this image hang?"),
    ],
    "brands": [
        ("P112", "Who founded {}?", "Who founded the brand in this image?"),
        ("P159", "Where is {} based?", "Where is the brand in this image based?"),
    ],
}
ANSWERS = {
    "P19": ["Malmö", "Leeds", "Ávila", "Cork"],
    "P26": ["Per Holm", "Ann Bly", "Rosa Gil", "Tom Roe"],
    "P84": ["Iris Vane", "Otto Kern", "Guy Lamy", "Nan Fox"],
    "P17": ["Norway", "UK", "France", "Canada"],
    "P170": ["Elsa Brand", "Luc Petit", "Ivo Sand", "Amy Stone"],
    "P276": ["Oslo", "Lyon", "Genoa", "Boston"],
    "P112": ["Kit Ray", "Jon Kolt", "Meg Dale", "Sue Hart"],
    "P159": ["Turin", "Perth", "Bath", "Basel"],
}
SIZES = [(40, 30), (30, 40), (60, 20), (336, 336)]
OF_ENTITIES = ["s_uri", "subject", "aliases", "type", "resized_path", "s_pop"]
OF_QUESTIONS = ["s_uri", "subject", "question", "question_for_image", "possible_answers", "r_uri"]
#: What each filter must take: the question, the question by picture, the answers.
EXTRA = {
    "yes or no": ("Is {} Swedish?", "Is the subject in this image Swedish?", "['yes']"),
    "one of two": ("Is {} a singer or an actor?", "Is this a singer or an actor?", "['actor']"),
    "no name": ("Where was she born?", "Where was the subject born?", "['Malmö']"),
    "a name": ("Whom did {} marry?", "Whom did ada  lindqvist, shown here, marry?", "['Per Holm']"),
    "the answer": ("Is it Per Holm that {} wed?", "Is it Per Holm that she wed?", "['Per Holm']"),
}


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of both tables, as published: lists are written in Python."""
    entities, questions = [], []
    for k, (kind, names) in enumerate(ENTITIES.items()):
        for i, name in enumerate(names):
            uri = f"http://www.wikidata.org/entity/Q{100 * (k + 1) + i}"
            aliases = [f"{name} ({kind})", name.split()[-1] + "é"]
            path = f"resized_images/{kind}/{100 * (k + 1) + i}.png"
            entities.append(
                dict(zip(OF_ENTITIES, [uri, name, repr(aliases), kind, path, "9.5"], strict=True))
            )
            for relation, by_name, by_picture in ASKED[kind]:
                answers = repr([ANSWERS[relation][i], ANSWERS[relation][i] + " (place)"])
                cells = [uri, name, by_name.format(name), by_picture, answers, f"x/{relation}"]
                questions.append(dict(zip(OF_QUESTIONS, cells, strict=True)))
    first = entities[0]
    for by_name, by_picture, answers in EXTRA.values():
        cells = [first["s_uri"], first["subject"], by_name.format(first["subject"]), by_picture]
        questions.append(dict(zip(OF_QUESTIONS, [*cells, answers, "x/P0"], strict=True)))
    return entities, questions


def write(folder: Path, entities: list[dict], questions: list[dict]) -> Path:
    """Write both tables and every picture to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("entities.csv", entities), ("questions.csv", questions)):
        with (folder / name).open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    for i, row in enumerate(entities):
        file = folder / row["resized_path"]
        if file.suffix and file.resolve().is_relative_to(folder.resolve()):
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", SIZES[i % 4], (15 * i, 200 - 10 * i, 120))
            ImageDraw.Draw(picture).line([(0, 0), picture.size], fill="white", width=3)
            picture.save(file)
    return folder


def copy(folder: Path) -> Path:
    """A sound local copy."""
    return write(folder, *rows())
