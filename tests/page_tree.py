"""A parsed page, for tests: elements with their attributes and the text within."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def all(self, name: str | None = None, class_: str | None = None) -> list["Element"]:
        found = []
        for child in self.children:
            fits = name in (None, child.name)
            if fits and (class_ is None or class_ in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(name, class_)
        return found

    def by_id(self, wanted: str) -> "Element":
        (found,) = [e for e in self.all() if e.attributes.get("id") == wanted]
        return found

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> within <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.pieces.append(data)


def parse(html: str) -> Element:
    """The tree of a page; every element must be closed where it belongs."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    assert builder.open == [builder.root], "elements are left open"
    return builder.root
