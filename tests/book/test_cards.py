"""The cards for Anki: one per prediction, and nothing of Markdown in them."""

import re

from lessons.book import cards


def test_each_prediction_is_a_card(tmp_path):
    path = tmp_path / "cards.txt"
    count = cards.write(path)
    written = [file.read_text("utf-8") for file in cards.LESSON_FILES]
    assert count == sum(text.count("# **Predict.**") for text in written) > 100
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line[0] != "#"]
    assert len(rows) == count and {len(row) for row in rows} == {3}
    for front, back, tag in rows:
        assert re.fullmatch(r"<small>.+</small><p>.+", front), front
        assert back.startswith("<p>") and not re.search(r"\*\*|`|\]\(|\$|details", front + back)
        assert " " not in tag
    assert rows[0][0].startswith("<small>0. QLoRA in one file: 2. NF4: a weight in 4 bits</small>")
