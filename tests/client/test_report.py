"""`attnserve explain-report` against a server whose answers are chosen here, and its page through a parser's eyes."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attnserve.cli import main
from attnserve.client import Prediction
from attnserve.errors import ConfigError
from attnserve.report import STYLE
from attnserve.review import Item, Row, Summary, by_concern, items
from attnserve.v1 import attention_pb2 as pb

HOSTILE = "<img src=x onerror=alert(1)>&\"'.png"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The tags of a page, and its text by the innermost tag."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1], data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def within(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Any) -> Path:
    """By grey level a surer dog: two cats, one of which looks like a dog, a dog, one of no class, and a broken file."""
    monkeypatch.chdir(tmp_path)
    levels = {"cat/sure.png": 10, f"cat/{HOSTILE}": 200, "dog/deep/er/one.PNG": 160, "elsewhere/any.png": 90}
    for name, level in levels.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), level).save(path)
    (tmp_path / "photos/dog/broken.jpg").write_bytes(b"bad")
    (tmp_path / "photos/notes.txt").write_text("no picture")
    whole = service.result

    def result(image: pb.Image, level: int) -> pb.ImageResult:
        found: pb.ImageResult = whole(image, level)
        dog = Image.open(io.BytesIO(image.encoded)).getpixel((0, 0)) / 255  # type: ignore[operator]
        del found.predictions[:]
        cat_label, dog_label = service.labels
        for index, label, probability in sorted(
            [(0, cat_label, 1 - dog), (1, dog_label, dog)], key=lambda each: -each[2]
        ):
            found.predictions.add(index=index, label=label, probability=probability)
        return found

    service.result = result
    return tmp_path / "photos"


def report(target: str, *flags: str) -> Page:
    assert main(["explain-report", "photos", "--server", target, *flags]) == 0
    return Page(Path("report.html"))


@pytest.mark.usefixtures("folder")
def test_the_page_holds_everything_and_asks_for_nothing(target: str) -> None:
    page = report(target)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/webp;base64,", "#")), value
    source = Path("report.html").read_text()
    assert "://" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source
    images = page.all("img")
    assert len(images) == 4 * 5  # the photo, two sites, two classes
    for image in images:
        assert image["src"] is not None
        data = base64.b64decode(image["src"].partition(",")[2], validate=True)
        with Image.open(io.BytesIO(data)) as shown:
            shown.load()
            assert (str(shown.width), str(shown.height)) == (image["width"], image["height"])


@pytest.mark.usefixtures("folder")
def test_the_wrong_ones_come_first_and_the_sure_last(target: str) -> None:
    page = report(target)
    assert page.within("h3") == [f"cat/{HOSTILE}", "dog/deep/er/one.PNG", "elsewhere/any.png", "cat/sure.png"]
    kinds = [(each["class"] or "").split(" ")[1:] for each in page.all("article")]
    assert kinds == [["wrong"], ["right"], [], ["right"]]


@pytest.mark.usefixtures("folder")
def test_counts_and_confusions_are_those_of_the_folder(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(target)
    shown = " ".join(data for _, data in page.texts)
    assert "4 of 5 pictures answered ( 1 without an answer ); 2 of the 3 with a known class right (66.7%)." in shown
    cells = [data for tag, data in page.texts if tag == "td"]
    assert cells[:4] == ["1", "1", "0", "1"]  # cat: one right, one taken for a dog; dog: one right
    assert cells[4:] == ["dog/broken.jpg", "INVALID_ARGUMENT: images[0]: not a picture"]
    assert "cat taken for dog: 1" in page.within("li")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "fake version 3: 4 of 5 pictures answered (1 failed: see the end of the page); 2 of 3 right"
    assert printed[1] == "1 picture in folders that are no class: elsewhere"
    assert printed[1] in page.within("p")
    size = Path("report.html").stat().st_size
    assert printed[2] == f"4 shown in report.html ({size / 1000:.0f} KB)"
    assert not Path("report.html.part").exists()


@pytest.mark.usefixtures("folder")
def test_file_names_and_labels_are_text(target: str, service: Any) -> None:
    service.labels[1] = "<b onclick=x>&\" onload='y"
    service.card = {"evaluation": [{"accuracy": 0.5, "dataset": "</dd><script>"}], "preprocessing": {"mean": "<u>"}}
    service.card_digest = "<i>"
    page = report(target)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "u"})
    assert "Grad-CAM: <b onclick=x>&\" onload='y (78.4%)" in page.within("figcaption")
    assert {name for image in page.all("img") for name in image} == {"src", "width", "height", "alt"}
    assert f"cat/{HOSTILE}" in page.within("h3")
    assert any("</dd><script>" in data for data in page.within("dd"))
    assert "<i>" in page.within("code")


@pytest.mark.usefixtures("folder")
def test_the_header_says_what_answered(target: str, service: Any) -> None:
    page = report(target, "--layer", "layer3")
    facts = page.within("dd")
    assert facts[0] == "fake version 3, 2 classes"
    assert page.within("code") == ["ab12"]
    assert facts[1:4] == ["the whole picture to 28 x 30", "not measured", "layer3; Grad-CAM"]
    assert facts[4].endswith(" UTC")
    explained = [request for request in service.requests if request.HasField("explain")]
    assert {tuple(request.explain.layers) for request in explained} == {("layer3",)}


@pytest.mark.usefixtures("folder")
def test_the_true_class_is_explained_beside_the_answer(target: str, service: Any) -> None:
    page = report(target, "--top-k", "1", "--limit", "2")
    wrong, right = ([*each.explain.classes] for each in service.requests if each.HasField("explain"))
    assert (wrong, right) == ([1, 0], [1])
    captions = page.within("figcaption")
    assert captions.count("Grad-CAM: cat (21.6%)") == 1
    assert len(page.all("article")) == 2
    assert any("2 more are counted above but not shown" in data for data in page.within("p"))


@pytest.mark.usefixtures("folder")
def test_a_class_that_nothing_spoke_for_is_said_so(target: str, service: Any) -> None:
    service.evidence[0] = 0 * service.evidence[0]
    page = report(target)
    assert page.within("span").count("nothing spoke for this class") == 4
    assert "nan" not in " ".join(data for _, data in page.texts)


@pytest.mark.usefixtures("folder")
def test_a_picture_whose_maps_fail_keeps_its_answer(target: str, service: Any, refusal: Any) -> None:
    def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        if request.HasField("explain"):
            raise refusal(3, "no <maps>")
        reply: pb.ClassifyResponse = service.echo(request)
        return reply

    service.answer = answer
    page = report(target)
    assert len(page.all("article")) == 4
    assert page.within("p").count("no maps: INVALID_ARGUMENT: no <maps>") == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "nowhere/report.html"], "--output: nowhere/report.html cannot be written"),
        (["--method", "hirescam"], "--method: last has no 'hirescam'; choose gradcam, layercam"),
        (["--layer", "layer9"], "--layer: fake does not explain by 'layer9'"),
        (["--top-k", "0"], "--top-k: must be at least 1"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_done_is_refused_before_a_picture_is_sent(
    target: str, service: Any, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["explain-report", "photos", "--server", target, *flags]) == 1
    assert message in capsys.readouterr().err
    assert service.requests == []


@pytest.mark.usefixtures("folder")
def test_another_method_is_asked_for_and_named(target: str, service: Any) -> None:
    page = report(target, "--method", "layercam")
    explained = [request for request in service.requests if request.HasField("explain")]
    assert {request.explain.method for request in explained} == {"layercam"}
    assert "the last layer; LayerCAM" in page.within("dd")
    assert {"LayerCAM", "Attention"} <= set(page.within("b"))
    assert "Grad-CAM" not in Path("report.html").read_text()


def test_certainties_are_text_too(target: str, service: Any, folder: Path) -> None:
    whole = service.result

    def sure(image: pb.Image, level: int) -> pb.ImageResult:
        found: pb.ImageResult = whole(image, level)
        for each, probability in zip(found.predictions, (0.9999, 0.0001), strict=True):
            each.probability = probability
        return found

    service.result = sure
    assert folder.is_dir()
    report(target)
    source = Path("report.html").read_text()
    assert "<span>&gt;99.9%</span>" in source
    assert "<span>&lt;0.1%</span>" in source
    assert ">99.9%" not in source.replace("&gt;99.9%", "")


def test_heads_of_the_confusions_stay_whole_words() -> None:
    (rule,) = (line for line in STYLE.splitlines() if line.startswith(".confusion th "))
    assert "overflow-wrap: normal" in rule
    assert ".scroll { overflow-x: auto; }" in STYLE


@pytest.mark.usefixtures("folder")
def test_a_label_with_a_slash_is_a_folders_name_too(target: str, service: Any, folder: Path) -> None:
    service.labels[0] = "cat/kitten"
    (folder / "cat").rename(folder / "cat_kitten")
    page = report(target)
    assert "cat/kitten taken for dog: 1" in page.within("li")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \.jpg, \.jpeg, \.png, \.webp files"):
        items(tmp_path, ["cat"])
    with pytest.raises(ConfigError, match="not a folder"):
        items(tmp_path / "no", ["cat"])


def test_a_report_of_unreadable_files_only_is_written_and_is_a_failure(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"bad")
    assert main(["explain-report", "photos", "--server", target]) == 1
    assert len(Page(Path("report.html")).all("article")) == 0


def test_concern_is_for_sure_errors_then_for_doubt() -> None:
    def row(name: str, truth: str | None, label: str, probability: float) -> Row:
        return Row(Item(Path(name), name, truth), (Prediction(0, label, probability),))

    rows = [
        row("sure", "a", "a", 0.99),
        row("wrong", "a", "b", 0.5),
        row("unknown", None, "a", 0.4),
        row("worse", "a", "b", 0.9),
        Row(Item(Path("x"), "broken", "a"), error="no"),
    ]
    assert [each.item.name for each in by_concern(rows)] == ["worse", "wrong", "unknown", "sure"]
    summary = Summary.of(rows)
    assert (summary.pictures, summary.answered, summary.labelled, summary.right) == (5, 4, 3, 1)
    assert summary.mistakes() == [("a", "b", 2)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.usefixtures("folder")
def test_a_browser_shows_the_page(target: str, tmp_path: Path) -> None:
    report(target)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "shot.png"
    command = [
        str(CHROMIUM),
        *flags,
        "--window-size=1300,1600",
        f"--screenshot={shot}",
        f"file://{tmp_path}/report.html",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        assert image.size == (1300, 1600)
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 500  # maps in colour, not an empty page
