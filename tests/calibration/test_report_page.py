"""`report.save`: the numbers as JSON, and a page that refers to nothing outside."""

import dataclasses
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from keras_dynamic import _files, calibration
from keras_dynamic.calibration import _page
from tests.calibration.test_report import by_hand, make_report


class Page(HTMLParser):
    """The elements and the text of a page; fails where elements are not nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text.strip())

    def circles(self, kind):
        found = [each for tag, each in self.tags if tag == "circle"]
        return [each for each in found if each["class"] == kind]


def leaves_of(num_samples, num_early=2):
    ranks = np.random.default_rng(1).permuted(
        np.tile(np.arange(num_samples), (num_early, 1)), axis=1
    )
    return [rank[:, None] < np.linspace(0, num_samples, 9) for rank in ranks]


def certificate(num_certified=1):
    steps = (
        calibration.PathStep((0.95, None), 0.7, 0, 1e-4),
        calibration.PathStep((0.9, 0.8), 0.6, 8, 0.4),
        calibration.PathStep((0.8, 0.8), 0.5, 9, None),
    )
    return calibration.Certificate(0.02, 0.95, 400, 400, 0, steps, num_certified)


def saved(report, tmp_path, **arguments):
    report.save(tmp_path / "report.html", **arguments)
    return (tmp_path / "report.html").read_text("utf-8")


def test_json_holds_the_report(tmp_path):
    report, _ = make_report(leaves=leaves_of(400), certificate=certificate())
    report.save(str(tmp_path / "report.json"), baselines={"small": (0.3, 1)})
    found = json.loads((tmp_path / "report.json").read_text())
    assert found.pop("format") == 1
    assert found.pop("baselines") == {"small": [0.3, 1.0]}
    assert found == report.to_dict()
    assert found["certificate"]["certified_risk"] == 0.02
    assert found["certificate"]["p_value"] == 1e-4
    assert len(found["curve"]) > 1


def test_the_page_is_self_contained(tmp_path):
    report, _ = make_report(leaves=leaves_of(400), certificate=certificate())
    text = saved(report, tmp_path, baselines={"small": (0.3, 0.5)})
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "a"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "href", "xlink:href", "onload", "action"}
    assert "url(" not in text and "@import" not in text and "http:" not in text
    assert "nan" not in text and "None" not in text and "inf" not in text
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_what_the_page_says(tmp_path):
    report, _ = make_report(leaves=leaves_of(400), certificate=certificate())
    text = saved(report, tmp_path, baselines={"small": (0.3, 0.5)})
    said = " ".join(Page(text).texts)
    for each in report.exits:
        assert f"{100 * each.exit_rate:.2f} %" in said
        assert f"{100 * each.accuracy_of_leavers:.2f} %" in said
    assert f"{100 * report.exits[0].spoiled:.2f} %" in said
    assert "at most 2.00 %" in " ".join(said.split())
    assert "not tested" in said and "small" in said
    said = " ".join(Page(saved(by_hand(), tmp_path)).texts)
    assert "Certified" not in said and "Path tested" not in said


def test_nothing_certified_is_said(tmp_path):
    report, _ = make_report(certificate=certificate(0))
    text = saved(report, tmp_path)
    assert "Nothing could be certified" in text and "promise none" in text


@pytest.mark.fault(
    case="names with HTML in them",
    made="exits, rule, goal, the state of a temperature and baselines named after "
    "scripts, quotes, ends of tags and of comments",
    lost="nothing: the page shows the names as text, has no element or attribute more "
    "than with plain names, and its policy allows no script",
)
def test_names_are_escaped(tmp_path):
    evils = [
        "<script>alert('&')</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "</title></svg></style><iframe>",
        "--><!--",
        "{{ 7 * 7 }}",
        "\u202ereversed\N{ZERO WIDTH SPACE}",
    ]

    def page(names):
        report, _ = make_report(
            num_early=4,
            names=[*names[:4], "final"],
            rule=names[4],
            goal=(names[5], 0.1),
            temperatures=[calibration.TemperatureFit(1.0, names[6], 0.1, 0.1)] * 5,
            certificate=certificate(2),
        )
        text = saved(report, tmp_path, baselines={name: (0.5, 0.5) for name in names})
        return text, Page(text)

    text, found = page(evils)
    _, plain = page([f"name_{number}" for number in range(len(evils))])
    assert "<script" not in text and "<img" not in text
    shape = [(tag, sorted(attributes)) for tag, attributes in found.tags]
    assert shape == [(tag, sorted(attributes)) for tag, attributes in plain.tags]
    for evil in evils[:6]:
        assert any(evil in each for each in found.texts), evil


def test_points_lie_where_they_should(tmp_path):
    """From by_hand: exit (0.4, 50 %), dynamic (0.8, 50 %), full network (1.2, 75 %).

    Costs reach from 0 to 1.08 * 1.2 = 1.296 over 62 to 742 pixels; accuracies from
    0.48 to 0.77 (a margin of 0.08 * 0.25 = 0.02) over 354 up to 14.
    """
    page = Page(saved(by_hand(), tmp_path))

    def place(kind):
        return [(float(c["cx"]), float(c["cy"])) for c in page.circles(kind)]

    bottom = 354 - 340 * 0.02 / 0.29
    assert place("exit") == [pytest.approx((62 + 680 * 0.4 / 1.296, bottom), abs=0.06)]
    assert place("dynamic") == [
        pytest.approx((62 + 680 * 0.8 / 1.296, bottom), abs=0.06)
    ]
    assert place("full") == [
        pytest.approx((62 + 680 / 1.08, 354 - 340 * 0.27 / 0.29), abs=0.06)
    ]


def test_a_reliability_diagram_by_hand():
    """Bins of the early exit at T = 1: (.5, 0), (.6, 1), (.8, .5) twice.

    From the least on, 0, to 1: over 62 to 282 pixels, and 244 up to 14.
    """
    diagram = _page._diagram(by_hand().exits[0])
    expected = [(172, 244, 1), (194, 14, 1), (238, 129, 1), (238, 129, 1)]
    assert diagram["before"] == expected
    sure = dataclasses.replace(
        by_hand().exits[1], reliability_before=((0.9, 0.75, 4),), reliability_after=()
    )
    # From 0.7 to 1: 0.9 lies two thirds along, 0.75 a sixth up.
    assert _page._diagram(sure)["before"] == [
        pytest.approx((62 + 220 * 2 / 3, 244 - 230 / 6, 4), abs=0.06)
    ]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1.2, [0, 0.25, 0.5, 0.75, 1]),
        (0.931, 0.968, [0.94, 0.95, 0.96]),
        (0.5, 1, [0.5, 0.6, 0.7, 0.8, 0.9, 1]),
    ],
)
def test_ticks(low, high, expected):
    assert _page._ticks(low, high) == expected


def test_labels_do_not_cover_each_other(tmp_path):
    crowd = {f"network {number}": (0.4, 0.5) for number in range(6)}
    found = _page._trade_off(by_hand(), crowd)["points"]
    heights = sorted(p["label_y"] for p in found if p["name"].startswith("network"))
    assert min(np.diff(heights)) >= 15


def test_a_long_name_keeps_to_the_page(tmp_path):
    long_name = "exit_after_block_4_of_the_encoder_output"
    networks = {long_name: (0.75, 0.5), "short": (0.75, 0.9)}
    found = _page._trade_off(by_hand(), networks)["points"]
    # 0.75 of 1.296 lies left of the middle of the right half: a short name has room.
    anchors = {point["name"]: point["anchor"] for point in found}
    assert anchors[long_name] == "end" and anchors["short"] == "start"


@pytest.mark.filterwarnings("error")
def test_reports_of_little(tmp_path):
    no_rows, _ = make_report(num_samples=0, leaves=leaves_of(0))
    assert no_rows.curve == ()
    Page(saved(no_rows, tmp_path))
    alone, _ = make_report(num_early=0)
    Page(saved(alone, tmp_path))
    # Everyone right everywhere: one accuracy, an axis all the same.
    sure = np.log([[0.9, 0.1]] * 3)
    fit = calibration.TemperatureFit(1.0, "fitted", 0.0, 0.0)
    report = calibration.build_report(
        [sure, sure],
        np.zeros(3, int),
        temperatures=[fit, fit],
        exit_index=np.ones(3, int),
        thresholds=[math.inf],
        exit_costs=[0.4, 1.0],
        names=["early", "final"],
        rule="max_probability",
    )
    Page(saved(report, tmp_path))


def test_spoiled_and_reliability_by_hand():
    # The final exit is wrong about row 3 alone; the early one is wrong there, too.
    early, final = by_hand().exits
    assert (early.spoiled, final.spoiled) == (0, 0)
    # Confidences .8 .8 .6 .5, a bin each from the least up: wrong, right, and the two
    # of .8 share one right answer.
    expected = ((0.5, 0, 1), (0.6, 1, 1), (0.8, 0.5, 1), (0.8, 0.5, 1))
    assert np.array(early.reliability_before) == pytest.approx(np.array(expected))
    scores = np.log([[0.9, 0.1], [0.1, 0.9]])
    fit = calibration.TemperatureFit(1.0, "fitted", 0.0, 0.0)
    report = calibration.build_report(
        [scores, scores[::-1]],
        np.array([0, 0]),  # early: right, wrong; final: wrong, right
        temperatures=[fit, fit],
        exit_index=np.zeros(2, int),
        thresholds=[0.5],
        exit_costs=[0.4, 1.0],
        names=["early", "final"],
        rule="max_probability",
    )
    assert report.exits[0].spoiled == 0.5


def test_spoiled_by_an_exit_between():
    # Right, right, right at the first exit; right, wrong, wrong; right, right, wrong.
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    answers = [[right] * 3, [right, wrong, wrong], [right, right, wrong]]
    fit = calibration.TemperatureFit(1.0, "fitted", 0.0, 0.0)
    report = calibration.build_report(
        np.log(answers),
        np.zeros(3, int),
        temperatures=[fit] * 3,
        exit_index=np.full(3, 2),
        thresholds=[None, None],
        exit_costs=[0.3, 0.6, 1.0],
        names=["first", "second", "final"],
        rule="max_probability",
    )
    # Row 1 would have been lost at the second exit only, row 2 at both.
    assert [each.spoiled for each in report.exits] == [pytest.approx(2 / 3), 0, 0]


def test_what_can_be_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    baselines = {"half as wide": np.array([0.5, 0.25]), "list": [0.4, np.float32(0.5)]}
    for path in ("a.JSON", "a.HTML", "b" * 250 + ".html"):
        by_hand().save(path, baselines)
    assert len(list(tmp_path.iterdir())) == 3
    fields = json.loads((tmp_path / "a.JSON").read_text())
    assert fields["baselines"] == {"half as wide": [0.5, 0.25], "list": [0.4, 0.5]}
    assert len(Page((tmp_path / "a.HTML").read_text()).circles("baseline")) == 2
    (tmp_path / "c.json").mkdir()
    with pytest.raises(IsADirectoryError, match="directory: 'c.json'$"):
        by_hand().save("c.json")


def test_the_curve_is_the_front():
    leaves = leaves_of(400)
    report, arguments = make_report(leaves=leaves)
    labels = arguments["labels"]
    correct = np.stack(
        [scores.argmax(1) == labels for scores in arguments["log_probabilities"]],
        axis=1,
    )
    _, costs, accuracies = calibration.threshold_front(
        leaves, correct, arguments["exit_costs"]
    )
    front = np.stack([costs, accuracies], axis=1)
    curve = np.array(report.curve)
    distance = np.abs(curve[:, None] - front).max(axis=2)
    assert distance.min(axis=1).max() < 1e-9
    assert distance[0, 0] < 1e-9 and distance[-1, -1] < 1e-9
    assert len(curve) <= 60


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    by_hand().save(path)
    before = path.read_text()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(_files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(by_hand(), rule="other").save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "report.pdf"}, ValueError, "'report.pdf'"),
        ({"baselines": {"a": 0.5}}, TypeError, "'a': 0.5"),
        ({"baselines": {"a": (0.5, "x")}}, TypeError, "'x'"),
        ({"baselines": {"a": (0, 0.5)}}, ValueError, r"\(0, 0.5\)"),
        ({"baselines": {"a": (0.5, 50)}}, ValueError, r"\(0.5, 50\)"),
        ({"baselines": {"a": (True, 0.5)}}, TypeError, r"\(True, 0.5\)"),
        ({"baselines": {"a": np.array([0.5] * 3)}}, TypeError, r"\[0.5, 0.5, 0.5\]"),
        ({"baselines": [("a", 0.5, 0.5)]}, TypeError, r"\[\('a', 0.5, 0.5\)\] of type"),
        ({"baselines": {1: (0.5, 0.5)}}, TypeError, "1 of type.*int"),
        ({"baselines": {"\udc80": (0.5, 0.5)}}, ValueError, r"'\\udc80'"),
        ({"path": "nowhere/a.html"}, FileNotFoundError, "'nowhere/a.html'$"),
        ({"path": f"{'a' * 300}.html"}, OSError, "aaa.html'$"),
    ],
)
def test_what_cannot_be_saved(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        by_hand().save(**{"path": "report.html"} | arguments)
    assert not list(tmp_path.iterdir())
