"""Write the predictions of the lessons and studies as cards for Anki, a text file to import.

    python -m lessons.book.cards cards.txt

The front of a card has a question, `**Predict.** …`, and the titles of its lesson and section. The
back has the answer. The tag is the name of the lesson's file.
"""

import re
import sys
from pathlib import Path

from markdown_it import MarkdownIt

from lessons.book.book import LESSON_FILES

HEADER = "#separator:tab\n#html:true\n#notetype:Basic\n#deck:minilora\n#tags column:3\n"
PART = re.compile(  # a heading, or a prediction: its answer is below it, or behind its code
    r"^#+ (?P<heading>[^\n]+)$|\*\*Predict\.\*\* (?P<question>.+?)"
    r"(?:<details><summary>Answer</summary>(?P<below>.+?)</details>"
    r"|^%%.+?\*\*Answer\.\*\* (?P<behind>.+?)(?=\n\n(?!- )|^%%))",
    re.MULTILINE | re.DOTALL,
)
PICTURE_OR_LINK = re.compile(r"!\[[^\]]*\]\([^)]+\)|\[([^\]]+)\]\([^)]+\)")


def html(text):
    """Turn Markdown into one line of HTML, with the words of links and without pictures."""
    words = PICTURE_OR_LINK.sub(lambda match: match[1] or "", text.strip())
    return " ".join(MarkdownIt().render(words).split())


def cards(file):
    """Yield (front, back, tag) of each prediction of a lesson."""
    lines = file.read_text("utf-8").splitlines()
    text = "\n".join(line[2:] if line.startswith("#") else "" for line in lines)
    headings = []
    for match in PART.finditer(text):
        if match["heading"]:
            headings.append(match["heading"])
            continue
        place = ": ".join(dict.fromkeys([headings[0], headings[-1]]))
        place = f"<small>{MarkdownIt().renderInline(place)}</small>"
        answer = match["below"] or match["behind"]
        yield place + html(match["question"]), html(answer), file.stem


def write(path):
    """Write the cards of all lessons; return how many they are."""
    rows = ["\t".join(card) for file in LESSON_FILES for card in cards(file)]
    Path(path).write_text(HEADER + "".join(f"{row}\n" for row in rows), "utf-8")
    return len(rows)


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {write(sys.argv[1])} cards")
