"""Check texts for what a bad export leaves: damaged characters, markup, and empty texts."""

import html
import re

LOST_CHARACTER = "\ufffd"
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# What the bytes of one UTF-8 character look like in Latin-1 or cp1252.
TWICE_ENCODED = re.compile("[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u0192\u02c6-\u02dc\u2013-\u2122]+")
ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,20}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|ol|p|span|strong|sub|sup|table|td|tr|u|ul)"
    r"(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
LETTER_OR_DIGIT = re.compile(r"[^\W_]")
MIN_CHARACTERS = 3


def text_faults(text: str) -> list[str]:
    """Return the codes of what is wrong with a text; most have none."""
    codes = []
    if LOST_CHARACTER in text:
        codes.append("lost-character")
    if not text.isascii() and _is_twice_encoded(text):
        codes.append("mojibake")
    if CONTROL_CHARACTER.search(text):
        codes.append("control-character")
    if "&" in text and _has_entity(text):
        codes.append("html-entity")
    if "<" in text and TAG.search(text):
        codes.append("html-tag")
    if not LETTER_OR_DIGIT.search(text):
        codes.append("no-word")
    elif len(text.strip()) < MIN_CHARACTERS:
        codes.append("near-empty")
    return codes


def _has_entity(text: str) -> bool:
    entities = [match[0] for match in ENTITY.finditer(text)]
    return any(html.unescape(entity) != entity for entity in entities)


def _is_twice_encoded(text: str) -> bool:
    """Whether UTF-8 was read as Latin-1 or cp1252: the characters, as bytes again, are UTF-8."""
    return any(_is_utf_8_as_latin(match[0]) for match in TWICE_ENCODED.finditer(text))


def _is_utf_8_as_latin(characters: str) -> bool:
    for encoding in ("cp1252", "latin-1"):
        for end in range(len(characters), 1, -1):
            try:
                decoded = characters[:end].encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
            if not decoded.isascii():
                return True
    return False
