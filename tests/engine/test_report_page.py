"""The page itself: what stands where, that nothing is loaded, that no name breaks it."""

import base64
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from page_tree import Element, parse
from PIL import Image
from report_folders import (
    CELLS,
    config_tree,
    jpeg,
    make_cell,
    make_probs,
    write_test,
    write_thumbnails,
    write_training,
)

from videogn.engine.report.markup import text
from videogn.engine.report.page import page
from videogn.engine.report.reading import read_run

# Typed from the paper, Table 8; the last row is recomputed.
TABLE_8 = [
    ["73.3 / 90.7", "72.1 / 90.0", "73.3 / 90.8"],
    ["73.0 / 90.6", "72.8 / 90.6", "74.5 / 91.7"],
    ["−0.3 / −0.1", "+0.7 / +0.6", "+1.2 / +0.9"],  # noqa: RUF001
]
HOSTILE = [
    "<script>alert(1)</script>.mp4",
    "\"'><img src=x onerror=alert(1)>",
    "&lt;already&gt; & co",
    "bell\x07 escape\x1b[31m line\nend\r\x7f\x85",
    "half a pair \ud800 and \udcff",
    "turned \u202ecod.exe\u2066",
    "</title></style></svg><h1>taken over</h1>",
    "javascript:alert(1)//http://example.com/a.js",
]


def page_of(*folders: Path) -> str:
    return page([read_run(str(f), f"R{n}") for n, f in enumerate(folders, start=1)])


def small(folder: Path, num_classes: int = 4, num_videos: int = 24, **about: object) -> Path:
    labels = np.arange(num_videos) % num_classes
    config = about.pop("config", config_tree("gn", 16, 1, 16, num_classes))
    probs = make_probs(labels, num_classes, 70, 1, neighbours=min(3, num_classes - 1))
    write_test(folder, probs, labels, config=config, **about)
    return folder


def table_of(root: Element, section: str, class_: str) -> list[list[Element]]:
    (table,) = root.by_id(section).all("table", class_)
    return [row.all("td") for row in table.all("tr")[1:]]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("six")
    return [make_cell(folder, name, 800) for name in CELLS]


@pytest.fixture(scope="module")
def six_page(six: list[Path]) -> str:
    return page_of(*six)


def test_published_numbers_stand_in_the_papers_order(tmp_path: Path) -> None:
    root = parse(page_of(small(tmp_path / "test")))
    cells = table_of(root, "table8", "table8")
    assert [[cell.all(class_="pair")[0].text for cell in row] for row in cells] == TABLE_8
    (table,) = root.by_id("table8").all("table", "table8")
    assert [th.text for th in table.all("tr")[0].all("th")[1:]] == [
        "32 frames, 8 clips per GPU",
        "32 frames, 4 clips per GPU",
        "64 frames, 4 clips per GPU",
    ]
    assert [row.all("th")[0].text[:2] for row in table.all("tr")[1:]] == ["BN", "GN", "GN"]
    assert [cell.all(class_="missing")[0].text for cell in cells[0]] == ["missing: no run"] * 3
    assert "no run of BN and GN" in cells[2][0].text


def test_six_runs_fill_the_six_cells(six: list[Path], six_page: str) -> None:
    root = parse(six_page)
    cells = table_of(root, "table8", "table8")
    links = [[[a.text for a in cell.all("a")] for cell in row] for row in cells]
    assert links == [
        [["R1"], ["R2"], ["R3"]],
        [["R4"], ["R5"], ["R6"]],
        [["R4", "R1"], ["R5", "R2"], ["R6", "R3"]],
    ]
    assert not root.all(class_="missing")
    for number, folder in enumerate(six):
        run = read_run(str(folder), "R")
        top1, top5 = run.results["top1"], run.results["top5"]
        ours = cells[number // 3][number % 3]
        assert ours.all(class_="pair")[1].text == f"{top1:.2f} / {top5:.2f}"
        published = float(TABLE_8[number // 3][number % 3].split()[0])
        shown = re.search(r"ours . paper (\S+)", ours.text)
        assert shown is not None
        signs = str.maketrans({"\N{MINUS SIGN}": "-"})
        assert float(shown[1].translate(signs)) == pytest.approx(top1 - published, abs=0.006)
        ends = re.search(r"95 % ([\d.]+)\S([\d.]+)", ours.text)
        assert ends is not None
        assert float(ends[1]) < top1 < float(ends[2])
        word = "inside" if float(ends[1]) <= published <= float(ends[2]) else "outside"
        assert f"value: {word} /" in ours.text
    assert "same list, same test" in cells[2][1].text
    assert "no cell" not in root.text


def test_difference_of_two_tests_that_are_not_alike_says_so(tmp_path: Path) -> None:
    config = {norm: config_tree(norm, 32, 2, 8) for norm in ("bn", "gn")}
    bn = small(tmp_path / "bn", 400, config=config["bn"])
    gn = small(tmp_path / "gn", 400, config=config["gn"], list_sha256="0", num_crops=3)
    text_of = table_of(parse(page_of(bn, gn)), "table8", "table8")[2][0].text
    assert "not one test: list_sha256, num_crops differ" in text_of


def test_what_is_read_and_computed_another_way_is_another_test(tmp_path: Path) -> None:
    config = {norm: config_tree(norm, 32, 2, 8) for norm in ("bn", "gn")}
    bn = small(tmp_path / "bn", 400, config=config["bn"], precision="fp32")
    gn = small(tmp_path / "gn", 400, config=config["gn"], precision="bf16", reader="decord")
    text_of = table_of(parse(page_of(bn, gn)), "table8", "table8")[2][0].text
    assert "not one test: reader, precision differ" in text_of


def test_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    config = config_tree("$\\nope$", 32, 2, 8)
    write_training(tmp_path, config, {100: 50.0})
    assert page_of(small(tmp_path / "test", config=config)).count("$\\nope$") > 1


def test_both_runs_of_one_cell_are_shown(six: list[Path], tmp_path: Path) -> None:
    again = small(tmp_path / "again", 400, config=config_tree("bn", 32, 2, 8))
    cells = table_of(parse(page_of(six[0], again, six[3])), "table8", "table8")
    assert [a.text for a in cells[0][0].all("a")] == ["R1", "R2"]
    assert [a.text for a in cells[2][0].all("a")] == ["R3", "R1", "R3", "R2"]


def test_runs_that_are_no_cell_stand_in_a_table_with_the_reason(tmp_path: Path) -> None:
    root = parse(page_of(small(tmp_path / "test", failed={2: "cut"}, num_clips=3)))
    (row,) = table_of(root, "table8", "wide")
    told = [cell.text for cell in row]
    assert told[:3] == ["GN", "16 \N{MULTIPLICATION SIGN} 1", "16"]
    assert told[5] == "23 of 24 (95.8 %)"
    assert told[6] == "paper, 3 clips \N{MULTIPLICATION SIGN} 1 crop"
    assert told[7].startswith("4 classes, not the 400 of Kinetics-400")


def test_departures_from_the_paper_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    small(folder, 400, 30, config=config_tree("bn", 32, 2, 8), protocol="center", weights="best",
          failed={4: "cut"})  # fmt: skip
    (notes,) = parse(page_of(folder)).by_id("table8").all("ul", "notes")
    told = [item.text.replace(" :", ":") for item in notes.all("li")]
    assert len(told) == 4
    for sentence in (
        "R1: test.protocol is center",
        "R1: the list has 30 videos; the released validation list has 19,761",
        "R1: the weights are those of the best validation",
        "R1: 1 video could not be read",
    ):
        assert any(line.startswith(sentence) for line in told), told


def test_clips_per_gpu_that_changed_in_training_are_told(tmp_path: Path) -> None:
    config = config_tree("bn", 32, 2, 8)
    write_training(tmp_path, config, {})
    starts = [{"kind": "start", "iteration": 9, "clips_per_gpu": clips} for clips in (4, 4, 8, 4)]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.writelines(json.dumps(start) + "\n" for start in starts)
    small(tmp_path / "test", 400, config=config)
    root = parse(page_of(tmp_path))
    assert "clips per GPU changed in training: 8, 4, 8, 4" in root.by_id("table8").text
    # The cell is that of the last start.
    assert [a.text for a in table_of(root, "table8", "table8")[0][1].all("a")] == ["R1"]


def test_coverage_never_rounds_up_to_all(tmp_path: Path) -> None:
    labels = np.arange(40_000) % 2
    probs = np.eye(2, dtype=np.float32)[labels]
    write_test(tmp_path, probs, labels, config=config_tree(num_classes=2), failed={0: "cut"})
    shown = page_of(tmp_path)
    assert "39,999 of 40,000 (99.998 %)" in shown
    assert "100.0 %" not in parse(shown).by_id("R1").text


def test_figure_7_has_four_curves_and_tells_them(six_page: str) -> None:
    section = parse(six_page).by_id("figure7")
    pictures = section.all("svg")
    labels = [svg.attributes["aria-label"] for svg in pictures]
    assert len(pictures) == 4
    assert "8 clips per GPU (R1) ends at" in labels[0]
    assert "4 clips per GPU (R2) ends at" in labels[0]
    assert "(R4)" in labels[1]
    assert "(R5)" in labels[1]
    # 64-frame clips are not the figure's.
    assert "(R3)" in labels[2]
    assert "(R6)" in labels[3]
    rows = [[cell.text for cell in row] for row in table_of(section_root(section), "f", "wide")]
    assert [row[-1] for row in rows] == [
        "Figure 7",
        "Figure 7",
        "other curve: clips of 64 frames; Figure 7's have 32",
    ] * 2


def section_root(section: Element) -> Element:
    return Element("root", {}, [Element("section", {"id": "f"}, section.children)])


def test_panels_of_figure_7_share_their_y_axis(tmp_path: Path) -> None:
    """Matplotlib names each tick in a comment: both panels have the same."""
    folders = []
    for norm, errors in (("bn", {100: 90.0, 200: 60.0}), ("gn", {100: 50.0, 200: 20.0})):
        write_training(tmp_path / norm, config_tree(norm, 32, 2, 8), errors)
        folders.append(
            small(tmp_path / norm / "test", 400, config=config_tree(norm, 32, 2, 8))
        )  # fmt: skip
    panels = page_of(*folders).split("<svg")[1:3]
    ticks = [re.findall(r"<!-- (\d+) -->", panel.split('id="GN-matplotlib.axis_2"')[-1]
             .split('id="BN-matplotlib.axis_2"')[-1]) for panel in panels]  # fmt: skip
    assert ticks[0] == ticks[1]
    assert {"20", "90"} <= set(ticks[0])


def test_missing_curves_are_named(tmp_path: Path) -> None:
    write_training(tmp_path, config_tree("gn", 32, 2, 4), {100: 50.0})
    small(tmp_path / "test", 400, config=config_tree("gn", 32, 2, 4))
    shown = page_of(tmp_path)
    bn, gn = shown.split("<svg")[1:3]
    for panel, missing in ((bn, ["8", "4"]), (gn, ["8"])):
        assert (
            re.findall(r"<!-- missing: (\d) clips per GPU", panel.replace("\n", " <!-- "))
            == missing
        )


def seen(folder: Path, norm: str, layer: str, values: list[list[float | None]]) -> Path:
    """A tested run that has logged these percentiles, one list for each 100 iterations."""
    config = config_tree(norm, 16, 1, 16, 4)
    write_training(folder, config, {}, global_batch=10, num_videos=1000)
    with (folder / "log.jsonl").open("a") as log:
        for number, row in enumerate(values, start=1):
            about = {"iteration": 100 * number, "layer": layer, "values": row}
            log.write(json.dumps({"kind": "percentiles", **about}) + "\n")
    small(folder / "test", config=config)
    return folder


def test_figure_6_has_a_panel_for_each_run_that_has_logged_percentiles(tmp_path: Path) -> None:
    first = seen(tmp_path / "1", "gn", "features.40", [[-4, -1, 1, 4], [-8, -2, 2, 8.5]])
    second = seen(tmp_path / "2", "none", "features.40", [[-70, -1, 1, None]])
    shown = page_of(first, small(tmp_path / "3"), second)
    section = parse(shown).by_id("figure6")
    labels = [svg.attributes["aria-label"] for svg in section.all("svg")]
    assert len(labels) == 2
    assert "features.40" in labels[0]
    assert "R1: GN: 1 % at −8, 20 % at −2, 80 % at 2, 99 % at 8.5" in labels[0]  # noqa: RUF001
    assert "R3: no norm" in labels[1]
    rows = [[cell.text for cell in row.all("td")] for row in section.all("tr")[1:]]
    assert [row[1:3] for row in rows] == [["features.40", "2.0"], ["features.40", "1.0"]]
    assert rows[1][-1] == "–"  # noqa: RUF001
    assert 'href="#figure6"' in shown
    # Matplotlib names what it writes in comments: both panels have four lines and one y axis.
    own = shown[shown.index('id="figure6"') : shown.index('id="figure7"')]
    panels = own.split("<svg")[1:]
    ticks = [
        re.findall(r"<!-- (\S+) -->", panel[panel.index("matplotlib.axis_2") :]) for panel in panels
    ]
    assert len(ticks[0]) > 3
    assert ticks[0] == ticks[1]
    for panel in panels:
        assert re.findall(r"<!-- (\d+) % -->", panel) == ["99", "80", "20", "1"]


def test_pages_without_percentiles_have_no_figure_6(six_page: str) -> None:
    assert "figure6" not in six_page
    assert "Figure 6" not in six_page


@pytest.mark.parametrize("layer", [*HOSTILE, "$\\nope$", "x" * 500])
def test_no_name_of_a_layer_breaks_the_page(tmp_path: Path, layer: str) -> None:
    shown = page_of(seen(tmp_path, "gn", layer, [[-4, -1, 1, 4]]))
    section = parse(shown).by_id("figure6")
    assert text(layer) in shown
    assert not section.all("script")
    assert not section.all("img")
    assert len(section.all("svg")) == 1


def test_few_classes_are_confused_in_numbers(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    guess = np.array([0, 0, 1, 1, 0, 2, 1])
    probs = np.eye(3, dtype=np.float32)[guess]
    names = ["wave", "jump", "run"]
    config = config_tree(num_classes=3)
    write_test(tmp_path, probs, labels, config=config, class_names=names, failed={6: "cut"})
    (table,) = parse(page_of(tmp_path)).by_id("R1").all("table", "confusion")
    rows = table.all("tr")
    assert [th.text for th in rows[0].all("th")[1:]] == names
    assert [[td.text for td in row.all("td")] for row in rows[1:]] == [
        ["2", "1", "0"],
        ["1", "1", "0"],
        ["0", "0", "1"],
    ]
    right = [
        [("diagonal" in td.attributes.get("class", "")) for td in r.all("td")] for r in rows[1:]
    ]
    assert right == np.eye(3, dtype=bool).tolist()


def test_many_classes_are_a_map_with_their_worst_pairs_in_a_table(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(30), 4)
    guess = labels.copy()
    guess[[8, 9, 10]] = 7  # of the four videos of class 2
    probs = np.eye(30, dtype=np.float32)[guess]
    write_test(tmp_path, probs, labels, config=config_tree(num_classes=30))
    section = parse(page_of(tmp_path)).by_id("R1")
    (image,) = section.all("img")
    pixels = np.asarray(Image.open(io.BytesIO(content_of(image, "image/png"))))
    assert pixels.shape == (30, 30, 4)
    counts = np.zeros((30, 30), int)
    np.add.at(counts, (labels, guess), 1)
    np.testing.assert_array_equal(pixels[..., 3] > 0, counts > 0)
    assert pixels[2, 7, 3] > pixels[2, 2, 3] > 0
    assert "117 of 120 videos lie on the diagonal" in image.attributes["alt"]
    captions = {table.all("caption")[0].text: table for table in section.all("table")}
    pair = captions["Pairs confused most"].all("tr")[1]
    assert [cell.text for cell in pair.children] == ["class 2", "class 7", "3 (75 %)"]
    worst = captions["Worst classes, accuracy in percent"].all("tr")[1]
    assert [cell.text for cell in worst.children] == ["class 2", "4", "25.0", "100.0"]


def content_of(image: Element, kind: str) -> bytes:
    start = f"data:{kind};base64,"
    assert image.attributes["src"].startswith(start)
    return base64.b64decode(image.attributes["src"][len(start) :], validate=True)


def test_mistakes_have_their_pictures(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 1])
    probs = np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0], [0.0, 0.4, 0.6]])
    names = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    write_test(
        tmp_path, probs, labels, config=config_tree(num_classes=3), names=names,
        class_names=["wave", "jump", "run"],
    )  # fmt: skip
    assert not parse(page_of(tmp_path)).by_id("R1").all("img")
    pictures = {2: jpeg(1), 0: jpeg(2)}
    write_thumbnails(tmp_path, pictures)
    (gallery,) = parse(page_of(tmp_path)).by_id("R1").all("ul", "gallery")
    first, second, third = gallery.all("figure")
    assert content_of(first.all("img")[0], "image/jpeg") == pictures[2]
    assert content_of(second.all("img")[0], "image/jpeg") == pictures[0]
    assert "no picture" in third.text
    assert first.all("figcaption")[0].text == "true: run (0.00) predicted: wave (0.90) c.mp4"
    assert "c.mp4" in first.all("img")[0].attributes["alt"]


def hostile_folder(folder: Path) -> Path:
    labels = np.arange(24) % 8
    write_test(
        folder / "test",
        make_probs(labels, 8, 40, 3),
        labels,
        config=config_tree("<b>gn</b>", 16, 1, 16, 8),
        names=HOSTILE * 3,
        class_names=HOSTILE,
        failed=dict(enumerate(HOSTILE)),
        **dict.fromkeys(("checkpoint", "list", "protocol", "reader", "weights"), HOSTILE[0]),
        checkpoint_sha256=HOSTILE[1],
        list_sha256=HOSTILE[4],
    )
    write_training(folder, config_tree("<b>gn</b>", 16, 1, 16, 8), {10: 50.0})
    return folder


def test_hostile_names_are_text(tmp_path: Path) -> None:
    html = page_of(hostile_folder(tmp_path / '<i>"run"'))
    html.encode("utf-8")
    root = parse(html)
    assert not root.all("script")
    assert not root.all("i")
    assert all("gn" not in bold.text for bold in root.all("b"))
    assert len(root.all("h1")) == len(root.all("title")) == 1
    assert not [e for e in root.all() for key in e.attributes if key.startswith("on")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    shown = root.by_id("R1").text
    for name in HOSTILE[:3]:
        assert name in shown
    assert r"bell\x07 escape\x1b[31m line\nend\r\x7f\x85" in shown
    assert r"half a pair \ud800 and \udcff" in shown
    assert r"turned \u202ecod.exe\u2066" in shown


@pytest.mark.parametrize("value", HOSTILE)
def test_text_is_safe_within_quotes_too(value: str) -> None:
    element = parse(f'<p title="{text(value)}">{text(value)}</p>').all("p")[0]
    assert element.attributes["title"] == "".join(element.pieces)
    assert not element.children


def test_nothing_is_loaded_from_elsewhere(six: list[Path], tmp_path: Path) -> None:
    html = page_of(*six[:2], hostile_folder(tmp_path / "run"))
    root = parse(html)
    assert not root.all("script") + root.all("link") + root.all("iframe") + root.all("object")
    for element in root.all():
        for key, value in element.attributes.items():
            if key in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
                assert value.startswith(("#", "data:image/")), (element.name, key, value)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert not re.search(r'="\s*(https?:)?//', html)
    (policy,) = [m for m in root.all("meta") if m.attributes.get("http-equiv")]
    assert "default-src 'none'" in policy.attributes["content"]


def test_names_within_the_page_are_unique_and_all_links_lead_somewhere(six_page: str) -> None:
    root = parse(six_page)
    names = [e.attributes["id"] for e in root.all() if "id" in e.attributes]
    assert len(names) == len(set(names))
    targets = [e.attributes["href"] for e in root.all() if "href" in e.attributes]
    assert {target[1:] for target in targets} <= set(names)


def test_page_can_be_read_aloud(six_page: str) -> None:
    root = parse(six_page)
    assert root.all("html")[0].attributes["lang"] == "en"
    for image in root.all("img"):
        assert image.attributes["alt"]
    for svg in root.all("svg"):
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-label"]
    for table in root.all("table"):
        assert table.all("caption")[0].text
        for header in table.all("th"):
            assert header.attributes["scope"] in ("col", "row")
    levels = [int(e.name[1]) for e in root.all() if re.fullmatch(r"h[1-6]", e.name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_same_input_same_bytes_whatever_matplotlib_is_set_to(
    six: list[Path], six_page: str
) -> None:
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "none"}):
        assert page_of(*six) == six_page
    assert not re.search(r"20\d\d-\d\d-\d\d", six_page)


def test_a_test_without_a_single_readable_video_is_shown(tmp_path: Path) -> None:
    folder = small(tmp_path / "test", failed=dict.fromkeys(range(24), "no such file"))
    section = parse(page_of(folder)).by_id("R1")
    assert "No video could be read" in section.text
    assert "and 4 more in results.json" in section.text
