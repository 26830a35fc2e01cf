"""The check of the built pages, on a small site, and how tutorials become notebooks."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PAGE = """<!doctype html><html><head><title>A page</title>
<link rel="stylesheet" href="_static/style.css"></head><body><nav>Contents</nav>
<div role="main"><h1>A page</h1>{content}</div></body></html>"""
FIGURE = """<figure><img src="_images/one.png" alt="A rising line of dots"><figcaption>
<p><span>What it costs.</span><a class="headerlink" href="#top">¶</a></p></figcaption>
</figure>"""
GOOD = f"""<p id="top">Text, and a <br> break.</p>{FIGURE}
<a href="more.html#far">there</a> <a href="https://example.org/nowhere">away</a>
<a href="#top">up</a> <a href="more.html?highlight=far">more</a>"""


def module(name):
    """One of the files in docs/, which are no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def check():
    return module("check_site")


@pytest.fixture
def site(tmp_path):
    """Writes two pages, the second below a folder's name with a space in it."""

    def write(content=GOOD):
        for name in ("_static/style.css", "_images/one.png", "_static/bad.html"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path.parent / "out.html").touch()  # is there, but not published
        (tmp_path / "index.html").write_text(PAGE.format(content=content))
        far = '<p>Text</p><dl id="far"></dl><a href="index.html">back</a>'
        (tmp_path / "more.html").write_text(PAGE.format(content=far))
        return tmp_path

    return write


def test_a_good_site_has_no_defects(check, site):
    assert check.defects(site()) == []


@pytest.mark.parametrize(
    ("content", "defect"),
    [
        ("", "the page has no text"),
        ("<script>var x = 1;</script>", "the page has no text"),
        ('Text <a href="gone.html">x</a>', "link gone.html leads nowhere"),
        ('Text <a href="../out.html">x</a>', "link ../out.html leads nowhere"),
        ('Text <img src="_images/two.png">', "link _images/two.png leads nowhere"),
        ('Text <a href="_images">x</a>', "link _images leads nowhere"),
        ('Text <a href="more.html#near">x</a>', "more.html#near leads to no anchor"),
        ('Text <a href="#near">x</a>', "link #near leads to no anchor"),
        (
            "Text" + FIGURE.replace("A rising line of dots", ""),
            "image _images/one.png has no alternative text, only ''",
        ),
        (
            "Text" + FIGURE.replace(' alt="A rising line of dots"', ""),
            "image _images/one.png has no alternative text",
        ),
        (
            "Text" + FIGURE.replace("A rising line of dots", "../_images/one.png"),
            "no alternative text, only '../_images/one.png'",
        ),
        (
            "Text" + FIGURE.replace("A rising line of dots", "0123456789abcdef" * 4),
            "no alternative text, only '0123456789",
        ),
        (
            "Text" + FIGURE.replace("What it costs.", ""),
            "image _images/one.png has no caption",
        ),
        (
            f"Text{FIGURE}<p><img src='_images/one.png' alt='Dots that rise'></p>",
            "image _images/one.png stands in no figure",
        ),
    ],
)
def test_each_defect_is_found(check, site, content, defect):
    found = [line for line in check.defects(site(content)) if defect in line]
    assert len(found) == 1
    assert found[0].startswith("index.html: ")


def test_a_folder_without_pages_is_a_defect(check, tmp_path):
    assert check.defects(tmp_path) == [f"{tmp_path.resolve()}: no pages"]


def test_the_command_lists_defects_and_fails(check, site, monkeypatch, capsys):
    folder = site('<a href="gone.html">x</a>')
    monkeypatch.setattr("sys.argv", ["check_site.py", str(folder)])
    with pytest.raises(SystemExit, match=r"gone\.html leads nowhere\n1 defects"):
        check.main()
    site()
    check.main()
    assert "every link leads somewhere" in capsys.readouterr().out


def test_a_figure_takes_its_caption_from_comments():
    pytest.importorskip("jupytext")
    notebook = module("tutorial_pages").read(
        "# %% [markdown]\n# # Title\n\n"
        "# %%\n# Caption: What it\n# costs.\n# Alt: A line\n# that rises.\nplot()\n\n"
        "# %%\n# An ordinary comment.\nx = 1\n"
    )
    title, figure, other = notebook.cells
    assert title.source == "# Title"
    assert figure.source == "plot()"
    assert figure.metadata["mystnb"] == {
        "figure": {"caption": "What it costs."},
        "image": {"alt": "A line that rises."},
    }
    assert other.source == "# An ordinary comment.\nx = 1"
    assert "mystnb" not in other.metadata


def test_every_tutorial_has_a_formula_a_figure_an_outlook_and_a_users_data():
    for path in sorted((ROOT / "tutorials").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "$$" in text, f"{path.name} has no formula"
        assert "# Caption: " in text, f"{path.name} has no figure"
        assert text.count("# Caption: ") == text.count("\n# Alt: "), path.name
        drawn = text.count("plt.show()") + text.count("savefig(")
        assert text.count("# Caption: ") == drawn, path.name
        assert "KERAS_DYNAMIC_DATA" not in text, f"{path.name} has own data"
        *_, last = text.split("# %% [markdown]\n")
        assert "What to try next" in last, f"{path.name} ends without an outlook"
