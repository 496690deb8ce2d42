"""Ids and text that break stores: twins, patterns, paths, and what looks like code.

Every id here is a valid one, and different from all others.
Use them wherever a driver builds a key, a path, a statement or a pattern.
"""

from __future__ import annotations

__all__ = ["IDS", "TEXTS"]


def _longest(body: str, *ends: str) -> list[str]:
    """Make ids of 512 bytes that differ in their last byte alone."""
    size = len(body.encode())
    made = [body * ((512 - len(end.encode())) // size) + end for end in ends]
    assert all(len(one.encode()) == 512 for one in made)
    assert len({one.encode()[:511] for one in made}) == 1
    return made


IDS: tuple[str, ...] = (
    # Twins to a comparison that folds or trims.
    *("abc", "Abc", "ABC", "abc ", " abc", "abc\t", "abc\n", "abc.", "abc\u200b", "abc\ufeff"),
    *("straße", "strasse", "STRASSE", "i", "I", "ı", "İ", "\u212a", "k", "K"),
    # Twins to a normalisation: é and e with an accent, Å and the ångström sign, wide and narrow.
    *("\u00e9", "e\u0301", "\u00c5", "\u212b", "A\u030a", "\uff21", "A", "a", "\ufb01", "fi"),
    # Twins to a number, and what a driver may take for nothing.
    *("0", "00", "0.0", "-0", "1", "01", "1.0", "1e0", "null", "None", "true", "nan", " ", "\t"),
    # Twins to one who joins ids with a separator, or replaces what he doesn't like.
    *("user@1", "user.1", "user:1", "user/1", "user-1", "user_1", "user|1", "user\x1f1", "user 1"),
    *("a:b", "a::b", "a%3Ab", "a%b", "a+b", "a b", "a%20b"),
    # Paths, and names that some file systems keep for themselves.
    *(".", "..", "../x", "../../etc/passwd", "/etc/passwd", "x/../y", "~", "a/", "a//b", "a\\b"),
    *("CON", "con", "NUL", "aux.txt", "COM1", "C:", "file.jsonl", ".hidden", "index", "-rf"),
    # Patterns.
    *("*", "?", "%", "_", "a%", "a_", "[a-z]", "^a$", ".*", "{x}", "{{x}}", "${x}", "%s", "$1"),
    # Code.
    *("'", '"', "''", "'; DROP TABLE messages; --", '"quoted"', "`", "\\", "\\'", ":name", "?1"),
    *('{"$gt": ""}', "$where", "$set", "a.$.b", "__proto__", "<b>", "&amp;", "\r\nSET x 1\r\n"),
    # Characters that are hard to see, to break or to order.
    *("\n", "\r", "\x01", "\x1b[0m", "\x7f", "\x85", "\u2028", "\u200f", "\u202eabc", "\u00a0"),
    *("😀", "👩‍👩‍👧", "👩", "é" * 20, "\ud7ff", "\ue000", "\ufffd", "\ufffe", "\uffff"),
    *("\U0001d54f", "\U0010ffff"),
    *("日本語", "עברית", "עִבְרִית", "العربية", "Ω", "\u2126", "ß", "ẞ"),
    # The longest, of characters of 1, 2, 3 and 4 bytes: twins to one who cuts them off.
    *_longest("a", "b", "c"),
    *_longest("é", "é", "è"),
    *_longest("€", "xa", "xb"),
    *_longest("😀", "😀", "😁"),
    *("a" * 255, "a" * 256, "a" * 511),
)
"""Ids to keep apart."""

TEXTS: tuple[str, ...] = (
    *IDS,
    *("", "\0", "a\0b", "\0\0", "ends in NUL\0", "\\0", "\\u0000", "\\\\u0000", "\\x00", "\x1a"),
    "".join(map(chr, range(0x20))),
    "".join(map(chr, range(0x7F, 0xA0))),
    "line\nline\r\nline\rline\u2028line\u2029line\x0bline\x0c",
    "  leading and trailing  \n",
    *('{"a": 1}', "[]", "{}", '"', "\\", '\\"', "1.0", "NaN", "-Infinity", "1e400"),
    "👍🏽👨‍👩‍👧‍👦🇪🇺" * 50,
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳",
)
"""Text to give back as it came."""
