"""HTML from small pieces; whatever comes from a file goes through :func:`text`."""

import html
from base64 import b64encode
from collections.abc import Iterable, Sequence

from videogn.files import printable

TIMES, MINUS, DASH = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{EN DASH}"


def text(value: object) -> str:
    """A value as HTML text that may stand anywhere, also within a quoted attribute.

    What does not print, such as half of a pair that UTF-8 cannot hold or a mark that turns the
    direction of letters, is written as ``\\x1b``: names of files may have any.
    """
    return html.escape(printable(value), quote=True)


def counted(number: int, what: str) -> str:
    """``1 video``, ``2 videos``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def tag(name: str, content: str, **attributes: object) -> str:
    """An element; attributes are escaped, and an underscore at the end of their name is cut off."""
    return f"<{name}{_attributes(attributes)}>{content}</{name}>"


def _attributes(attributes: dict[str, object]) -> str:
    return "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], class_: str | None = None
) -> str:
    """A table that scrolls where it is too wide; the first cell of a row is its header.

    Args:
        caption: plain text.
        head: plain text.
        rows: cells of HTML.
    """
    top = "".join(tag("th", text(name), scope="col") for name in head)
    body = "".join(
        tag("tr", tag("th", first, scope="row") + "".join(tag("td", cell) for cell in rest))
        for first, *rest in rows
    )
    whole = tag("caption", text(caption)) + tag("thead", tag("tr", top)) + tag("tbody", body)
    return scrolling(tag("table", whole, class_=class_), caption)


def scrolling(content: str, label: str) -> str:
    """A box that scrolls sideways, by keyboard too."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def items(sentences: Iterable[str], class_: str | None = None) -> str:
    """A list of HTML sentences; nothing where there are none."""
    found = "".join(tag("li", sentence) for sentence in sentences)
    return tag("ul", found, class_=class_) if found else ""


def picture(kind: str, data: bytes, alt: str, class_: str | None = None) -> str:
    """A picture that is part of the page; ``kind`` is png or jpeg."""
    source = f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"
    classes = "" if class_ is None else f' class="{text(class_)}"'
    return f'<img{classes} alt="{text(alt)}" src="{source}">'
