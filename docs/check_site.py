"""Checks the built pages: `python docs/check_site.py docs/_build/html`.

Every link and anchor inside the site leads somewhere, every page has text, and every
image has an alternative text and stands in a figure with a caption. What is wrong is
listed, and the exit status is 1.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Elements that have no end tag.
_VOID = frozenset(
    "area base br col embed hr img input link meta source track wbr".split()
)


class _Page(HTMLParser):
    """Reads from a page its anchors, links, images and text."""

    def __init__(self, html):
        super().__init__()
        self.anchors, self.links, self.images = set(), [], []
        self.text = ""
        self._open, self._figures = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = {name: value or "" for name, value in attributes}
        self.anchors.update(attributes[k] for k in ("id", "name") if k in attributes)
        self.links += [attributes[k] for k in ("href", "src") if k in attributes]
        if tag == "figure":
            self._figures.append({"caption": ""})
        if tag == "img":
            figure = self._figures[-1] if self._figures else None
            self.images.append((attributes, figure))
        if tag not in _VOID:
            main = attributes.get("role") == "main"
            self._open.append((tag, main or self._within_main()))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in [name for name, _ in self._open]:
            return
        while self._open.pop()[0] != tag:
            pass
        if tag == "figure":
            self._figures.pop()

    def handle_data(self, data):
        tags = {name for name, _ in self._open}
        if "figcaption" in tags and self._figures:
            self._figures[-1]["caption"] += data.strip(" \n#¶")
        if self._within_main() and not tags & {"h1", "script", "style"}:
            self.text += data.strip()

    def _within_main(self):
        return bool(self._open) and self._open[-1][1]


def _image_defects(page):
    for attributes, figure in page.images:
        name = attributes.get("src", "")
        alt = attributes.get("alt", "").strip()
        # Where there is none, Sphinx gives the name of the file.
        if len(alt.split()) < 3:
            yield f"image {name} has no alternative text, only {alt!r}"
        if figure is None:
            yield f"image {name} stands in no figure"
        elif not figure["caption"]:
            yield f"image {name} has no caption"


def _link_defects(path, page, root, pages):
    for link in sorted(set(page.links)):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = path
        if parts.path:
            base = root if parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve()
        if target.is_dir():
            target = target / "index.html"
        if not (target.is_relative_to(root) and target.is_file()):
            yield f"link {link} leads nowhere"
        elif parts.fragment and target in pages:
            if unquote(parts.fragment) not in pages[target].anchors:
                yield f"link {link} leads to no anchor"


def defects(root):
    """Returns what is wrong with the pages under a folder, a line for each defect."""
    root = Path(root).resolve()
    files = sorted(
        path
        for path in root.rglob("*.html")
        if "_static" not in path.relative_to(root).parts
    )
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in files}
    found = [] if pages else [f"{root}: no pages"]
    for path, page in pages.items():
        here = [*_link_defects(path, page, root, pages), *_image_defects(page)]
        if not page.text:
            here.append("the page has no text")
        found += [f"{path.relative_to(root)}: {defect}" for defect in here]
    return found


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/check_site.py FOLDER_OF_THE_BUILT_PAGES")
    found = defects(sys.argv[1])
    if found:
        sys.exit("\n".join([*found, f"{len(found)} defects"]))
    print("every link leads somewhere; every page has text, every figure its caption")


if __name__ == "__main__":
    main()
