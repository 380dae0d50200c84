"""One self-contained HTML page about a folder of pictures: what the model said, and what the maps show.

Owns the page's words and markup; the look is `report.css`. Every text that comes from a file's name, a label or the
model's card is escaped, and the page's own policy forbids any request. Knows no server and no folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from attnserve.canvas import data_uri, printable
from attnserve.client.messages import Classification, ModelInfo
from attnserve.evidence import METHODS, attention_panels, explanation_panels, percent
from attnserve.heat import JET
from attnserve.render import Panel, at_panel_size, covers, shrunk
from attnserve.review import Row, Summary

SMALLEST_PICTURE, LARGEST_PICTURE = 192, 320
"""Pixels of a picture's longer side on the page: sharp at the size shown, and a hundred rows fit a mail."""

LARGEST_MATRIX = 20
"""Classes up to which confusions are a matrix: with more, only the pairs that occur are listed."""

MOST_MISTAKES = 30  # pairs listed
AGAINST = "counterfactual"  # the method whose maps speak against a class

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

READING = (
    "<b>Attention</b> is the gate that the network itself computed (CBAM: the spatial gate; BAM: the gate averaged"
    " over channels), at the last site of each stage. It is relative salience: later layers rescale what a gate lets"
    " through, so it says where the network looked, not how much that spoke for a class. Each panel's colours span its"
    " own values, which stand below it.",
    "<b>{title}</b> is evidence {way} the logit of the class that is named, not for its probability, which depends on"
    " all classes. For one picture the panels of one layer share a scale, from 0 to the greatest value among them;"
    " values of different layers or pictures cannot be compared. A map that is 0 everywhere is not drawn: nothing spoke"
    " {way} that class there.",
    "Maps are as coarse as their feature maps (rows x columns) and are smoothed for the eye. A plausible map does not"
    " make an answer right, nor does a strange one make it wrong.",
    "The outlined box, where there is one, is the part of the photo that the model saw; nothing outside was looked at.",
)


@dataclass(frozen=True)
class Heading:
    """What stands above everything.

    Attributes:
        folder: Name of the folder.
        date: When the page was made.
        layers: That explain.
        method: By which they do.
        shown: Pictures shown in detail.
    """

    info: ModelInfo
    folder: str
    date: str
    layers: Sequence[str]
    method: str
    shown: int


def text(value: object) -> str:
    """Untrusted text as HTML."""
    return escape(printable(str(value)))


def head(title: str, style: str) -> str:
    """The beginning of a page, up to its heading.

    Args:
        style: CSS besides that of every page.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>
{STYLE}{style}
</style>
</head>
<body>
<h1>{text(title)}</h1>"""


def opening(heading: Heading, summary: Summary) -> str:
    """The page up to its first picture."""
    info = heading.info
    title = f"What {info.name} looked at in {heading.folder}"
    words = {"title": text(_method(heading.method)), "way": "against" if heading.method == AGAINST else "for"}
    reading = "".join(f"<li>{line.format(**words)}</li>" for line in READING)
    scale = f".scale {{ background: {_gradient()}; }}"
    return f"""{head(title, scale)}
<p class="lead">{_counts(summary)}</p>
{f"<p>{text(summary.strays)}</p>" if summary.stray else ""}
{_facts(heading)}
<h2>What the maps mean, and what they do not</h2>
<ul>{reading}</ul>
{_confusions(summary, info.labels)}
<h2>Pictures</h2>
<p class="faint">{_order(heading.shown, summary)}</p>
{_filter() if summary.labelled else ""}
"""


def closing(errors: Sequence[Row]) -> str:
    """The page after its last picture: what had no answer."""
    if not errors:
        return "</body>\n</html>\n"
    rows = "".join(f"<tr><td>{text(row.item.name)}</td><td>{text(row.error)}</td></tr>\n" for row in errors)
    return f"""<h2 id="errors">Without an answer</h2>
<table class="errors"><thead><tr><th scope="col">file</th><th scope="col">error</th></tr></thead>
<tbody>
{rows}</tbody></table>
</body>
</html>
"""


def _counts(summary: Summary) -> str:
    line = f"{summary.answered} of {summary.pictures} pictures answered"
    if summary.failed:
        line += f' (<a href="#errors">{summary.failed} without an answer</a>)'
    if summary.labelled:
        share = text(percent(summary.right / summary.labelled))
        line += f"; {summary.right} of the {summary.labelled} with a known class right ({share})"
    return line + "."


def _facts(heading: Heading) -> str:
    info = heading.info
    facts = {
        "model": f"{text(info.name)} version {text(info.version)}, {len(info.labels)} classes",
        "card": f"<code>{text(info.card_digest)}</code>",
        "preprocessing": text(_preprocessing(info)),
        "accuracy by the card": text(_accuracy(info.card)),
        "explained by": text(f"{_layers(heading.layers)}; {_method(heading.method)}"),
        "made": text(heading.date),
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in facts.items()) + "</dl>"


def _layers(layers: Sequence[str]) -> str:
    return ", ".join("the last layer" if each == "last" else each for each in layers)


def _method(method: str) -> str:
    return "The counterfactual" if method == AGAINST else METHODS.get(method, method)


def _preprocessing(info: ModelInfo) -> str:
    """As the card says it; a card without that has the view's size at least."""
    recorded = info.card.get("preprocessing", {})
    view = f"{info.view_height} x {info.view_width}"
    resize = recorded.get("resize")
    how = f"shorter side to {resize}, centre crop of {view}" if resize else f"the whole picture to {view}"
    extras = (f"{name} {recorded[name]}" for name in ("interpolation", "mean", "std") if name in recorded)
    return "; ".join((how, *extras))


def _accuracy(card: dict[str, Any]) -> str:
    measured = [
        f"{each['accuracy']:.2%} of {each.get('images', '?')} pictures"
        f" ({each.get('dataset', '?')}, {each.get('split', '?')})"
        for each in card.get("evaluation", ())
        if isinstance(each.get("accuracy"), float | int)
    ]
    return "; ".join(measured) or "not measured"


def _order(shown: int, summary: Summary) -> str:
    first = "The wrong ones first, the surest error before the others; then" if summary.labelled else "In order:"
    more = f" {summary.answered - shown} more are counted above but not shown." if shown < summary.answered else ""
    return f"{first} the least sure first. {shown} shown.{more}"


def _filter() -> str:
    choices = (("all", " checked"), ("wrong", ""), ("right", ""))
    return '<div class="filter">' + "".join(
        f'<label><input type="radio" name="show" id="show-{name}"{checked}> {name}</label>' for name, checked in choices
    ) + "</div>"  # fmt: skip


def _confusions(summary: Summary, labels: Sequence[str]) -> str:
    if not summary.labelled:
        return ""
    classes = summary.classes(labels)
    table = _matrix(summary, classes) if len(classes) <= LARGEST_MATRIX else ""
    listed = summary.mistakes()[:MOST_MISTAKES]
    mistakes = "".join(f"<li>{text(truth)} taken for {text(found)}: {count}</li>" for truth, found, count in listed)
    rest = len(summary.mistakes()) - len(listed)
    more = f"<p>and {rest} rarer pairs</p>" if rest else ""
    return f"<h2>Confusions</h2>\n{table}\n" + (
        f"<ul>{mistakes}</ul>{more}" if mistakes else "<p>No picture is wrong.</p>"
    )


def _matrix(summary: Summary, classes: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{text(label)}</th>' for label in classes)
    rows = "".join(
        f'<tr><th scope="row">{text(truth)}</th>'
        + "".join(_cell(summary.confusion[truth, found], truth == found) for found in classes)
        + "</tr>\n"
        for truth in classes
    )
    return (
        '<div class="scroll"><table class="confusion"><thead><tr><th scope="col">true \\ answer</th>'
        f"{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>"
    )


def _cell(pictures: int, hit: bool) -> str:
    kind = "none" if not pictures else "hit" if hit else "miss"
    return f'<td class="{kind}">{pictures}</td>'


def picture(row: Row, answer: Classification | None, photo: Image.Image | None, error: str = "") -> str:
    """One picture's part of the page.

    Args:
        answer: With attention and explanations, and the probability of every class; None where the maps failed.
        photo: The upright original, RGB; likewise.
        error: Why there are no maps.
    """
    kind = {True: " right", False: " wrong", None: ""}[row.right]
    head = f'<h3>{text(row.item.name)}</h3>\n<p class="verdict">{_verdict(row)}</p>\n{_predictions(row)}'
    if answer is None or photo is None:
        body = f"<p>no maps: {text(error)}</p>"
    else:
        body = f'<div class="maps">\n{_maps(answer, photo)}</div>'
    return f'<article class="picture{kind}">\n{head}\n{body}\n</article>\n'


def _verdict(row: Row) -> str:
    best = row.predictions[0]
    said = f"{text(best.label)} ({text(percent(best.probability))})"
    if row.right is None:
        return f"<b>{said}</b>"
    return f"<b>right</b>: {said}" if row.right else f"<b>wrong</b>: taken for {said}, is {text(row.item.truth)}"


def _predictions(row: Row) -> str:
    lines = "".join(
        f'<span class="label">{text(each.label)}</span>'
        f'<span class="track"><i style="width:{each.probability:.1%}"></i></span>'
        f"<span>{text(percent(each.probability))}</span>\n"
        for each in row.predictions
    )
    return f'<div class="predictions">\n{lines}</div>'


def _maps(answer: Classification, photo: Image.Image) -> str:
    small, scale = at_panel_size(photo, SMALLEST_PICTURE, LARGEST_PICTURE)
    box = shrunk(answer.view, scale)
    seen = _figure(small, "photo", f"{photo.width} x {photo.height}", _view(box, small))
    looked = [_panel(panel, small, scale) for panel in attention_panels(answer)]
    groups = [
        [seen, *looked],
        *([_panel(panel, small, scale) for panel in group] for group in explanation_panels(answer)),
    ]
    return "".join(f'<div class="group">\n{"".join(group)}</div>\n' for group in groups)


def _view(box: Any, photo: Image.Image) -> str:
    """The outline of what the model saw, in shares of the photo; nothing where that is all of it."""
    if covers(box, photo.size):
        return ""
    left, width = box.left / photo.width, (box.right - box.left) / photo.width
    top, height = box.top / photo.height, (box.bottom - box.top) / photo.height
    return f'<i class="view" style="left:{left:.2%};top:{top:.2%};width:{width:.2%};height:{height:.2%}"></i>'


def _panel(panel: Panel, photo: Image.Image, scale: float) -> str:
    over = f'<span class="remark">{text(panel.remark)}</span>' if panel.remark else ""
    low, high = ("", "") if panel.remark else map(text, panel.ends)
    legend = (
        ""
        if panel.remark
        else f'<div class="scale"></div><div class="ends"><span>{low}</span><span>{high}</span></div>'
    )
    drawn = panel.over(photo, shrunk(panel.box, scale))
    return _figure(drawn, panel.title + panel.ending, panel.note, over, legend)


def _figure(shown: Image.Image, title: str, note: str, over: str, legend: str = "") -> str:
    image = f'<img src="{data_uri(shown, "WEBP")}" width="{shown.width}" height="{shown.height}" alt="{text(title)}">'
    return (
        f'<figure><div class="frame">{image}{over}</div>{legend}'
        f"<figcaption>{text(title)}<br><span>{text(note)}</span></figcaption></figure>\n"
    )


def _gradient() -> str:
    """The colour bar, from the least to the greatest value."""
    return "linear-gradient(90deg, " + ", ".join(f"#{bytes(JET[level]).hex()}" for level in range(0, 256, 17)) + ")"
