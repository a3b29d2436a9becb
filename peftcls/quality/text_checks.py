"""What a bad export leaves in a text: damaged characters, markup, and texts with nothing in them."""

import html
import re

LOST = "\ufffd"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
TWICE_ENCODED = re.compile("[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u0192\u02c6-\u02dc\u2013-\u2122]+")
ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,20}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|ol|p|span|strong|sub|sup|table|td|tr|u|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
WORD = re.compile(r"[^\W_]")
FEWEST_CHARACTERS = 3


def text_faults(text: str) -> list[str]:
    """The codes of what is wrong with a text; most have none."""
    found = []
    if LOST in text:
        found.append("lost-character")
    if not text.isascii() and _is_twice_encoded(text):
        found.append("mojibake")
    if CONTROL.search(text):
        found.append("control-character")
    if "&" in text and any(
        html.unescape(entity[0]) != entity[0] for entity in ENTITY.finditer(text)
    ):
        found.append("html-entity")
    if "<" in text and TAG.search(text):
        found.append("html-tag")
    if not WORD.search(text):
        found.append("no-word")
    elif len(text.strip()) < FEWEST_CHARACTERS:
        found.append("near-empty")
    return found


def _is_twice_encoded(text: str) -> bool:
    """Whether UTF-8 was read as Latin-1 or cp1252 somewhere: the characters, as bytes again, are UTF-8."""
    for found in TWICE_ENCODED.finditer(text):
        for encoding in ("cp1252", "latin-1"):
            for end in range(len(found[0]), 1, -1):
                try:
                    if not found[0][:end].encode(encoding).decode("utf-8").isascii():
                        return True
                except UnicodeError:
                    continue
    return False
