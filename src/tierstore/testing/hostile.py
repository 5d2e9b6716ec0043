"""Names that have broken stores before: every one is valid, and must come back exactly as it was given.

For the laws of backends, the HTTP layer's tests and the values' own. All keys are distinct, and stay distinct only in a
store that neither folds case, nor normalises Unicode, nor trims, decodes or resolves anything.
"""

from typing import Final

from tierstore.limits import Limits
from tierstore.types.ids import ObjectId, Scope

_KEY_BYTES_MAX = Limits().key_bytes_max

_PATHS = (
    "a", "a/", "/a", "a/b", "a//b", "//", "/", "///", ".", "..", "...", "./a", "../x", "../../../etc/passwd", "a/..",
    "a/../b", "a/./b", "/..", "../", "..\\x", "\\", "C:\\x", "C:", "\\\\host\\share", "file:///etc/passwd",
    "~", "~root",
    "a/..;/b",
)  # fmt: skip
_RESERVED = (
    "CON", "con", "nul", "NUL", "aux.txt", "COM1", "PRN", "LPT9", ".git", ".gitignore", ".DS_Store", "objects",
    "objects/", "objects/x", "x/objects/y", "org.1/objects/k", "_", "*", "*.blob", "x.blob", "x.tmp", "tmp",
    "lost+found",
    "-", "-rf", "--help", "0", "-1", "null", "None", "true", "NaN",
    "x/018f3c2e-7b1a-7000-8000-000000000000", "018f3c2e-7b1a-7000-8000-000000000000",
)  # fmt: skip
_CONTROLS = (
    "\x00", "a\x00", "a\x00b", "\x00a", "a\tb", "a\nb", "a\rb", "a\r\nx-sn-origin: forged", "\r\n\r\n",
    "\x1b[31m", "\x7f",
    "\x80", "\x85", "\x9f", "a\u2028b", "a\u2029b", "".join(map(chr, range(32))),
)  # fmt: skip
_ENCODINGS = (
    "%", "%%", "%2", "%zz", "%2e%2e", "%2E%2E", "%2e%2e%2f", "%00", "%252e", "%0d%0a", "100%", "a%20b", "a b", "a+b",
    "%C3%A9", "%FF", "&amp;", "\\u0041", "\\x41", "=?utf-8?q?a?=", "+ADw-",
)  # fmt: skip
_SYNTAX = (
    "?", "a?b=c", "#", "a#b", ";", "a;b", "=", "org=1;project=2", "&", "a&b", ":", "@", "a:b@c", ",", "'",
    '"', "`", "$(x)",
    "${x}", "{key}", "{0}", "%s", "%n", "'; DROP TABLE objects; --", "a*b", "a?b", "[a]", "[!a]", "{a,b}", "a_b", "a%b",
    "<script>alert(1)</script>", "|", "^", "!", "os_sig=1", "?upload_id=1", "*/*",
)  # fmt: skip
_ENDS = (" ", "  ", " a", "a ", "a.", "a..", ".a", "a. ", "\u00a0", "a\u00a0", "\ufeffa", "a\u200b", "\u3000")
_CASES = (
    "A", "K", "k", "\u212a", "\u00df", "ss", "SS", "\u1e9e", "\u0130", "i\u0307", "i", "I", "\u0131", "\u017f", "s",
)  # fmt: skip
"""Letters that upper-casing, lower-casing or folding makes equal; U+212A is the sign of kelvin."""
_NORMALISATIONS = (
    "\u00e9", "e\u0301", "caf\u00e9", "cafe\u0301", "\u00c5", "A\u030a", "\u212b", "\ufb01", "fi", "\uac00",
    "\u1100\u1161",
    "\uff0e\uff0e", "\uff0f", "\u2024\u2024", "\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u2260",
    "=\u0338", "\u2126", "\u03a9",
)  # fmt: skip
_SCRIPTS = (
    "\u05d0\u05d1\u05d2", "\u200f", "\u200ea", "\u202egpj.exe", "\u2066a\u2069", "\u65e5\u672c\u8a9e.txt",
    "\u0e20\u0e32", "\u0915\u094d\u0937",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f",
    "\u2764", "\u0430", "z\u0300\u0301\u0302\u0303\u0304\u0305",
)  # fmt: skip
# U+FFFF sorts before U+10000 in UTF-8 and after it in UTF-16; the last code point ends every range of a listing.
_PLANES = (
    *(chr((plane << 16) | 0x0400) for plane in range(17)),
    "\ud7ff", "\ue000", "\ufffd", "\ufffe", "\uffff", "\U00010000", "\U0001ffff", "\U000e0041", "\U0010ffff",
    "a\U0010ffff",
)  # fmt: skip
_LENGTHS = (
    "n" * 255,
    "n" * 256,
    "s/" + "n" * 255,
    "s/" + "n" * 256,
    "\u00e9" * 127 + "n",
    "\u00e9" * 128,
    "\U0001f600" * 64,
    "/".join(["d"] * 256),
    "d/" * 256,
    "../" * 256 + "x",
    "k" * (_KEY_BYTES_MAX - 1),
    "k" * _KEY_BYTES_MAX,
    "/" * _KEY_BYTES_MAX,
    "%" * _KEY_BYTES_MAX,
    "\x00" * _KEY_BYTES_MAX,
    "\U0001f600" * (_KEY_BYTES_MAX // 4),
    "\u00e9" * (_KEY_BYTES_MAX // 2 - 1) + "\u0301",
)

HOSTILE_KEYS: Final[tuple[str, ...]] = tuple(
    dict.fromkeys((
        *_PATHS, *_RESERVED, *_CONTROLS, *_ENCODINGS, *_SYNTAX, *_ENDS, *_CASES, *_NORMALISATIONS, *_SCRIPTS, *_PLANES,
        *_LENGTHS,
    ))
)  # fmt: skip
"""Valid keys, all different. Good as file names and as any other free text, too."""

INVALID_KEYS: Final[tuple[str, ...]] = (
    "",
    "\ud800",
    "a\udfffb",
    "\udcff",
    "k" * (_KEY_BYTES_MAX + 1),
    "\u00e9" * (_KEY_BYTES_MAX // 2) + "k",
)
"""Text that is no key: empty, not encodable in UTF-8, or a byte too long."""

HOSTILE_USECASES: Final[tuple[str, ...]] = (
    "CON",
    "nul",
    "NUL",
    "aux",
    "objects",
    "OBJECTS",
    "___",
    "---",
    "-rf",
    "000",
    "u" * 64,
)
"""Valid usecases."""

HOSTILE_SCOPES: Final[tuple[tuple[Scope, ...], ...]] = (
    (),
    (Scope("org", "1"),),
    (Scope("ORG", "1"),),
    (Scope("org", "1"), Scope("project", "2")),
    (Scope("project", "2"), Scope("org", "1")),
    (Scope("org", "1"), Scope("org", "1")),
    (Scope("_", "_"),),
    (Scope("objects", "objects"),),
    (Scope("CON", "nul"),),
    (Scope("-", "--"),),
    (Scope("$()", "!'+"),),
    (Scope("n" * 256, "v" * 256),),
    tuple(Scope(f"s{position}", "v") for position in range(16)),
)
"""Valid scopes, in one order each."""

HOSTILE_IDS: Final[tuple[ObjectId, ...]] = (
    *(ObjectId("testing", (Scope("org", "1"),), key) for key in HOSTILE_KEYS),
    *(ObjectId(usecase, (), "objects/k") for usecase in HOSTILE_USECASES),
    *(ObjectId("hostile", scopes, "k") for scopes in HOSTILE_SCOPES),
)
"""Object ids, all different, that cover the corpus."""
