"""What a response answers and what a gold says: one extraction for training, data preparation and evaluation."""

import ast
import math
import re

# "\boxed" after a program read "\b" as a backspace is a box too; "\boxed{...}" and "\boxed{}" only name the format.
BOX = re.compile(r"(?:\\(?:f?box(?:ed)?|framebox)|\x08oxed)\s*\{")
BARE = re.compile(r"\\boxed\s*(\(|\\\{)?(-?\d[\d.,]*\d|[^\W_](?!\w))(?(1)(?:\)|\\\}))")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
PLACEHOLDER = re.compile(r"(?:\s|\.|\\l?dots|\\text\{\s*(?:your )?answer\s*\})*")
# Boxes of one answer: \boxed{1}, \boxed{2} and \boxed{3}.
JOINED = re.compile(r"[\s$]*(?:,|;|,?\s*(?:\\text\{)?\s*(?:and|or)\s*\}?)(?:\s|\$|\\quad|\\[,;])*")
BETWEEN_LIMIT = 40
ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL)
# Not repeated: what models append is one token, and a quantifier around it is slow on a megabyte.
END = re.compile(r"(?:<\|[^|<>]{1,20}\|>|</s>|```)\s*$")
MARKED = re.compile(
    r".*(?:####\s|\banswer\s*(?:\*\*)?\s*[:\uff1a]|\banswer\s+is\b\s*[:\uff1a]?|答案\s*(?:\*\*)?\s*[:\uff1a是为])"
    r"[\s*}]*(.+)",
    re.IGNORECASE,
)
HEADING = re.compile(r"[#*\s]*(?:the\s+)?(?:final\s+)?(?:answer(?:\s+is)?|(?:最终)?答案)[\s*:\uff1a]*", re.IGNORECASE)
BOLD = re.compile(r"\*\*([^*]+)\*\*[.\s]*")
REASON = re.compile(r",?\s+(?:since|because)\s.*")
# A final line longer than this is prose; the longest published gold has 198 characters.
LINE_LIMIT = 2000
MISSING = {"", "nan", "none", "null", "[]", "{}"}
WRAPPED = re.compile(r"\$([^$]*)\$|\\\(([^$]*)\\\)")


def final_answer(response: object) -> str | None:
    r"""The answer that a response commits to, without its mark, or None; anything but a string has none.

    Only what follows the last `</think>` counts, and nothing if a `<think>` stays open. Of that, the last `<answer>`,
    and in it the last `\boxed{}` (or several joined by commas, "and" or "or"), none if it is never closed. Without a
    box, all of `<answer>`, or the last line if it says "Answer: ...", "... answer is ...", `#### ...` (also with the
    mark on the line before), or if all of it is bold. A bare number never counts: a response that mentions many would
    be right by luck.
    """
    if not isinstance(response, str):
        return None
    text = response[response.rfind("</think>") + 1 :]
    if "<think>" in text:
        return None
    tagged = ANSWER_TAG.findall(text) if "</answer>" in text else []
    text = tagged[-1] if tagged else text
    text = BARE.sub(lambda match: rf"\boxed{{{match[2]}}}", text)
    boxes = list(BOX.finditer(text))
    return (_boxed(text, boxes) if boxes else tagged[-1].strip() if tagged else _marked(text)) or None


def gold_text(gold: object) -> str:
    r"""A gold of any type as the text of its answer.

    Numbers lose their type (4.0 is 4), a list joins its members by commas, a dictionary is the value of its only key;
    so is a text that writes such a one. Of a solution the answer behind `####` or in the last box counts.

    Raises:
        ValueError: it has no answer: nothing, NaN, several keys, a solution without a complete box.
    """
    if isinstance(gold, str) and gold.isdecimal():  # nearly every gold in training
        return gold
    if tolist := getattr(gold, "tolist", None):  # numpy
        # By its text: a float32 has more digits as a double.
        gold = float(str(gold)) if isinstance(tolist(), float) else tolist()
    if isinstance(gold, dict) and len(gold) == 1:
        return gold_text(*gold.values())
    if isinstance(gold, list | tuple) and gold:
        return ", ".join(map(gold_text, gold))
    if isinstance(gold, float) and math.isfinite(gold):
        return str(int(gold)) if gold.is_integer() else f"{gold:.15g}"
    if not isinstance(gold, str | int) or (text := str(gold).strip()).lower() in MISSING:
        raise ValueError(f"{gold!r} is no answer")
    if text[0] in "[{" and text[1:2] in tuple("'\""):  # quotes: [1, 2] is an interval
        try:
            return gold_text(ast.literal_eval(text))
        except SyntaxError as error:
            raise ValueError(f"{gold!r} is no answer") from error
    text = text.rpartition("####")[2].strip()
    if BOX.search(text):
        text = final_answer(text) or ""
    if wrapped := WRAPPED.fullmatch(text):
        text = (wrapped[1] or wrapped[2] or "").strip()
    if not text:
        raise ValueError(f"{gold!r} has no complete answer")
    return text


def _boxed(text: str, boxes: list[re.Match[str]]) -> str | None:
    """The last box, with those before it that are joined to it; None if its braces never balance."""
    contents: list[str] = []
    start = len(text)
    for match in reversed(boxes):
        end = _end(text, match.end())
        joined = not contents or (start - end <= BETWEEN_LIMIT and JOINED.fullmatch(text, end, start))
        if not 0 <= end <= start or not joined:
            break
        content = text[match.end() : end - 1]
        if contents or not PLACEHOLDER.fullmatch(content):
            contents.append(content)
            start = match.start()
    return ", ".join(reversed(contents)).strip()


def _end(text: str, start: int) -> int:
    """Where a box ends; -1 if its braces never balance."""
    depth = 1
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return brace.end()
    return -1


def _marked(response: str) -> str | None:
    text = END.sub("", response[-2 * LINE_LIMIT :].rstrip()).rstrip()
    *before, line = [line.strip() for line in text.split("\n") if line.strip()] or [""]
    if len(line) > LINE_LIMIT:
        return None
    if match := MARKED.fullmatch(line) or BOLD.fullmatch(line):
        return REASON.sub("", match[1]).strip().strip("*").strip()
    return line.strip("*") if before and HEADING.fullmatch(before[-1]) else None
