"""Find the encoding of a text file: a byte order mark, UTF-8, or Chinese text in GBK."""

import codecs
import logging
from pathlib import Path

from peftcls.data.compression import open_binary

logger = logging.getLogger("peftcls")

UTF_8 = "utf-8-sig"
# The longer marks first: the mark of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CHINESE = "gb18030"
"""It contains GBK and GB2312."""
# Every Chinese text is full of these, and what another encoding looks like when it is read as GBK
# is not.
COMMON_CHARACTERS = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年"
    "过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心"
    "她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间"
    "由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给"
    "世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变"
)
MIN_COMMON_SHARE = 0.1
SAMPLE_BYTES = 1 << 20
BLOCK_BYTES = 1 << 20


def find_encoding(path: Path) -> str:
    """The encoding of a text file, with a message where it is not UTF-8.

    What is neither UTF-8 nor found here is taken as UTF-8, and refused when it is read.
    """
    encoding = _marked_encoding(path)
    reason = "by its byte order mark"
    if encoding is None:
        encoding = _two_byte_encoding(path)
        reason = "as every second byte at its beginning is 0"
    if encoding is None and not _is_utf_8(path) and _is_chinese(path):
        encoding = CHINESE
        reason = "by its characters"
    if encoding is None:
        return UTF_8
    example = "latin-1" if encoding == CHINESE else "utf-16-be"
    logger.warning(
        f"{path.name} is not in UTF-8; it was read as {encoding.upper()}, {reason}. If its texts "
        f"look wrong, give its encoding, such as --encoding {example}, in Python "
        f"encoding={example!r}."
    )
    return encoding


def _marked_encoding(path: Path) -> str | None:
    with open_binary(path) as file:
        first_bytes = file.read(4)
    for mark, encoding in MARKS:
        if first_bytes.startswith(mark):
            return encoding
    return None


def _two_byte_encoding(path: Path) -> str | None:
    """UTF-16 without a mark, by a beginning of ASCII characters: half of its bytes are 0."""
    with open_binary(path) as file:
        first_bytes = file.read(8)
    if len(first_bytes) < 8:
        return None
    even, odd = any(first_bytes[::2]), any(first_bytes[1::2])
    if all(first_bytes[::2]) and not odd:
        return "utf-16-le"
    if all(first_bytes[1::2]) and not even:
        return "utf-16-be"
    return None


def _is_utf_8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_binary(path) as file:
            while block := file.read(BLOCK_BYTES):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _is_chinese(path: Path) -> bool:
    """Whether a file is in GBK: all of it can be read so, and common characters are common."""
    decoder = codecs.getincrementaldecoder(CHINESE)()
    common = 0
    characters = 0
    try:
        with open_binary(path) as file:
            while block := file.read(BLOCK_BYTES):
                text = decoder.decode(block)
                if characters < SAMPLE_BYTES:
                    other = [character for character in text if not character.isascii()]
                    characters += len(other)
                    common += sum(character in COMMON_CHARACTERS for character in other)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return characters > 0 and common >= MIN_COMMON_SHARE * characters
