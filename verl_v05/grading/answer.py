"""The final answer of a response: what stands in its last box, or else on its last line behind a mark."""

import re

BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
# Boxes of one answer: \boxed{1}, \boxed{2} and \boxed{3}.
BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|;|,?\s*(?:\\text\{)?\s*(?:and|or)\s*\}?)(?:\s|\$|\\quad|\\[,;])*")
BETWEEN_LIMIT = 40
MARKED = re.compile(r"(?:\banswer\s*(?:\*\*)?\s*[:\uff1a]|\banswer\s+is\s*[:\uff1a]?)\s*(.+)$", re.IGNORECASE)
BOLD = re.compile(r"\*\*([^*]+)\*\*[.\s]*$")
# A final line longer than this is prose; the longest published gold has 198 characters.
LINE_LIMIT = 2000


def final_answer(response: object) -> str | None:
    r"""The answer that a response commits to.

    The last `\boxed{}` (or several joined by commas, "and" or "or") counts wherever it stands; one that is never closed
    is an answer cut off: none. Without a box, the last line counts if it says "Answer: ..." or "... answer is ...",
    or if all of it is bold. A bare number never counts: a response that mentions many would be right by luck.

    Args:
        response: the text; anything but a string has no answer.

    Returns:
        The answer without its mark, or None.
    """
    if not isinstance(response, str):
        return None
    boxes = [match.start() for match in BOX.finditer(response)]
    return _boxed(response, boxes) if boxes else _marked(response)


def _boxed(response: str, starts: list[int]) -> str | None:
    last = _content(response, starts[-1])
    if last is None:
        return None
    contents, start = [last[0]], starts[-1]
    for previous in reversed(starts[:-1]):
        if (box := _content(response, previous)) is None or not 0 <= start - box[1] <= BETWEEN_LIMIT:
            break
        if not BETWEEN_BOXES.fullmatch(response, box[1], start):
            break
        contents.append(box[0])
        start = previous
    return ", ".join(reversed(contents)).strip() or None


def _content(text: str, start: int) -> tuple[str, int] | None:
    """What a box holds and where it ends; None if its braces never balance."""
    opening = text.index("{", start)
    depth, position = 0, opening
    while position < len(text):
        match text[position]:
            case "\\":
                position += 1
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth == 0:
                    return text[opening + 1 : position], position + 1
        position += 1
    return None


def _marked(response: str) -> str | None:
    line = response.rstrip()[-LINE_LIMIT - 1 :].rsplit("\n", 1)[-1].strip()
    if len(line) > LINE_LIMIT:
        return None
    marks = list(MARKED.finditer(line)) or list(BOLD.finditer(line[: LINE_LIMIT if line.startswith("**") else 0]))
    return marks[-1].group(1).strip().strip("*").strip() or None if marks else None
