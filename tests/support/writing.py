"""Generated texts in many scripts, with what is hard on tokenizers: marks, joiners, control characters, odd spaces."""

from __future__ import annotations

import random
import unicodedata

#: First and last letters of alphabets (marks among them).
ALPHABETS = [
    (0x61, 0x7A), (0x61, 0x7A), (0x41, 0x5A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F),
    (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7B1), (0x900, 0x97F), (0x980, 0x9FE), (0xA01, 0xA76),
    (0xB80, 0xBFA), (0xC00, 0xC7F), (0xD00, 0xD7F), (0xE01, 0xE5B), (0xE81, 0xEDF), (0xF00, 0xFDA), (0x1000, 0x109F),
    (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137C), (0x13A0, 0x13FD), (0x1780, 0x17F9), (0x1820, 0x1878),
    (0x1E00, 0x1EFF), (0x1F00, 0x1FFE), (0x3041, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFF01, 0xFFEE), (0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F),
    (0x20000, 0x2A6DF), (0x2F800, 0x2FA1D),
]  # fmt: skip
MARKS = (
    "\u0300\u0301\u0308\u0323\u0334\u0345\u034f\u035c\u0483\u05b0\u064b\u0651\u0670\u093c\u094d\u0e34\u20dd\u3099\u1dc0"
)
SPACES = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
CONTROLS = (
    "\0\x01\x07\x08\x1b\x7f\x80\x8f\x9f\xad\u061c\u0600\u200c\u200d\u200e\u202e\u2060\ufff9\ufffd\ufffe\U000e0001"
)
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡§«¶·»¿‐–—‘’“”…‰′※⁂、。〈《「！？｡؟।॥๏༄᠀⸮©®™€+×÷∑"
DIGITS = "0123456789٠١٢۴५६๙²³¼½Ⅷⅻ①⑳㉛零〇𝟘𝟗"
SEQUENCES = [
    "👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🏴\u200d☠\ufe0f", "🇩🇪🇫🇷", "❤\ufe0f\u200d🔥", "1\ufe0f\u20e3", "🤣🥺",
    "☺\ufe0f", "©\ufe0f", "©\u200d😀", "🫠", "e\u0301", "A\u030a\u0323", "ẛ\u0323", "각", "각", "각",
    "नमस\u094dत\u0947", "สว\u0e31สด\u0e35", "กำ", "السلام عليكم", "لله", "ﷺ", "ﬁnance", "ﬃ", "İstanbul", "ΣΑΣ",
    "Straße", "ǅ", "ŉ", "ſ", "ꝛ", "\r\n", "\n\n", "  ", "   ", "\t\t", "'s", "'S", "'ſ", "'ll", "'LL", "n't",
    "don't", "I'M", "'re", "www.a-b.org/?q=1&r=2", "3.14159", "1,000,000", "x=y+z;", "__init__", "snake_case",
    "CamelCase", "a" * 120, "ab" * 60, "##ing", "##", "▁", "▁▁a", "Ġ", "Ċ", "<0x41>", "<0xE2>", "</w>", "\u0344",
    "\u0f73\u0f71", "ஔ", "Ω", "Å", "שּׁ", "𝅗𝅥", "㍿", "½", "ª", "ᾷ", "\U00011938", "ꟲ", "㋿", "🅬", "𐞁", "\u200d",
    "\u0301", " \u0301",
]  # fmt: skip
#: Special tokens of all families, spelled out.
SPECIAL = [
    "[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[mask]", "<s>", "</s>", "<unk>", "<pad>", "<mask>", " <mask>",
    "<mask> ", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<think>",
    "<tool_call>", "word", "Ünit",
]  # fmt: skip


def word(draw: random.Random) -> str:
    """A word of one alphabet, which may be a code point of any kind."""
    first, last = draw.choice(ALPHABETS)
    # Few letters come often, so that a trainer finds something to merge.
    span = min(last - first, draw.choice((4, 12, last - first)))
    return "".join(chr(first + draw.randint(0, span)) for _ in range(draw.randint(1, 8)))


def text(draw: random.Random) -> str:
    """A text of a few parts, down to none."""
    return "".join(_part(draw) for _ in range(draw.choice((0, 1, 1, 2, 3, 4, 6, 9, 14))))


def _part(draw: random.Random) -> str:
    kind = draw.randrange(24)
    if kind < 10:
        return word(draw) + draw.choice((" ", " ", " ", "", "  "))
    if kind < 12:
        return draw.choice(SEQUENCES)
    if kind == 12:
        return draw.choice(SPECIAL)
    if kind == 13:
        return draw.choice(SPACES) * draw.choice((1, 1, 2, 3))
    if kind == 14:
        return draw.choice(CONTROLS)
    if kind == 15:
        return draw.choice("aeoAсाक©\u0627\u3042") + "".join(draw.choices(MARKS, k=draw.randint(1, 3)))
    if kind == 16:
        return "".join(draw.choices(DIGITS, k=draw.randint(1, 7)))
    if kind < 19:
        return "".join(draw.choices(PUNCTUATION, k=draw.randint(1, 3)))
    if kind < 22:
        return draw.choice(("the ", "film was ", "good", "Wake me at six", " play some music", "don't ", "It", "I'll "))
    if kind == 22:
        return _any_character(draw) * draw.choice((1, 1, 2))
    return "".join(_any_character(draw) for _ in range(draw.randint(1, 4)))


def _any_character(draw: random.Random) -> str:
    """Any code point, those of the first plane as often as all others."""
    point = draw.choice((draw.randrange(0x10000), draw.randrange(0x20000), draw.randrange(0x110000)))
    return chr(point) if not 0xD800 <= point < 0xE000 else "\ufffd"


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [text(draw) for _ in range(count)]


def marked_texts(count: int, seed: int) -> list[str]:
    """Texts of marks, joiners, and characters that compose or decompose: what normal forms and clusters turn on."""
    draw = random.Random(seed)
    characters = [chr(point) for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    marks = [char for char in characters if unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf")]
    compound = [char for char in characters if unicodedata.decomposition(char)]
    kinds = (marks, marks, marks, compound, compound, characters, characters[:0x3100], "©a\r\n\0\u200c\u200d\u0344가각")
    return ["".join(draw.choice(draw.choice(kinds)) for _ in range(draw.randrange(1, 9))) for _ in range(count)]
