"""Names that look alike and differ in their bytes: where to match them all the same, and how to say why not.

macOS stores accents decomposed, spreadsheets write them composed; Windows separates folders with backslashes; columns
have spaces at their end that no error shows.
"""

import unicodedata
from collections.abc import Iterable

_SEPARATORS = {";": "semicolons (;)", "\t": "tabs", "|": "bars (|)", ",": "commas (,)"}


def composed(name: str) -> str:
    """A name with its accents composed (Unicode NFC). Names that are equal then are equal for people."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spellings(name: str) -> list[str]:
    """The ways in which a path may be spelled on this machine, as given first: slashes, and forms of accents."""
    ways = [name, name.replace("\\", "/")]
    if not name.isascii():
        ways += [unicodedata.normalize(form, way) for form in ("NFC", "NFD") for way in ways]
    return list(dict.fromkeys(ways))


def look_alike(name: str, names: Iterable[str]) -> str:
    """A sentence about the first name that looks like another one, with the difference; empty if none does."""
    plain = _plain(name)
    for other in names:
        if other != name and _plain(other) == plain:
            # of accents, only their codes tell the difference
            shown = ascii(other) if composed(name) == composed(other) else repr(other)
            return f" There is {shown:.120}, which differs {_difference(name, other)}."
    return ""


def other_delimiter(header: Iterable[str]) -> str:
    """A sentence about a header that is one field because another character separates its fields; else empty."""
    fields = list(header)
    if len(fields) != 1:
        return ""
    found = [said for character, said in _SEPARATORS.items() if character in fields[0]]
    return (
        f" Its fields are separated by {found[0]}: separate them with commas in a .csv and with tabs in a .tsv."
        if found
        else ""
    )


def _plain(name: str) -> str:
    """A name without everything that people overlook."""
    if not (name.isascii() and name.isprintable()):
        name = unicodedata.normalize("NFKC", name)
        name = "".join(" " if c.isspace() else c for c in name if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(name.replace("\\", "/").split()).casefold()


def _difference(name: str, other: str) -> str:
    if composed(name) == composed(other):
        return "in how accents are stored (composed or decomposed Unicode)"
    if name.casefold() == other.casefold():
        return "in upper and lower case"
    if name.replace("\\", "/") == other.replace("\\", "/"):
        return "in backslashes and slashes"
    if name.split() == other.split():
        return "in spaces"
    return "in characters that cannot be seen, or look the same"


__all__ = ["composed", "look_alike", "other_delimiter", "spellings"]
