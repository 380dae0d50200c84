"""Which maps of an answer are shown: in what order, under which title and on what scale.

Owns the words and the scales; knows no drawing surface, file, server or page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from attnserve.canvas import printable
from attnserve.card import LAST
from attnserve.client.messages import Classification, Prediction, SiteInfo
from attnserve.preprocess import CropBox
from attnserve.render import Panel

METHODS = {
    "gradcam": "Grad-CAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam++": "Grad-CAM++",
    "counterfactual": "against",
}
"""Method -> how a title calls it."""

KINDS = {
    "cbam": "CBAM spatial gate",
    "bam": "BAM mean gate",
    "self": "share of the class token",
    "rollout": "share of the class token",
}
"""Kind of site -> what its shown map is."""

NOT_FINITE = "not finite"
"""What stands in the place of a map that holds a NaN or an infinity."""

ATTENTION_NOTE = (
    "Attention (CBAM: spatial gate; BAM: gate averaged over channels; transformer: what the class token takes from "
    "each patch) is relative salience: each panel's colours span its own values."
)
EVIDENCE_NOTE = (
    "Grad-CAM and its kin are evidence for the logit of the class named: all panels of one layer share one scale, "
    "from 0 to the greatest value among them."
)


PROBABILITY_NOTE = (
    "Probabilities are each cell's, averaged over the tiles that lie on it: all panels share one scale, from 0 to 1. "
    "A percentage is the mean over all tiles."
)


@dataclass(frozen=True)
class Evidence:
    """One class's map, (h, w) float32, over the box of the picture that it covers."""

    layer: str
    method: str
    class_index: int
    label: str
    values: NDArray[np.float32]
    box: CropBox


def last_of_each_stage(sites: Sequence[SiteInfo]) -> tuple[str, ...]:
    """Names of the last site of each stage that has a spatial map.

    A stage is a run of sites of one kind that see feature maps of one shape, whatever their names are.
    """
    shown = [site for site in sites if site.has_spatial]
    stages = groupby(shown, key=lambda site: (site.kind, site.channels, site.height, site.width))
    return tuple(list(stage)[-1].name for _, stage in stages)


def attention_panels(answer: Classification) -> list[Panel]:
    """A panel for each site: BAM's gate, averaged over channels, CBAM's spatial gate, a transformer's shares.

    Each is on its own scale.
    """
    panels = []
    for site in answer.attention:
        shown = site.spatial if site.combined is None else site.combined
        if shown is not None and shown.values is not None:
            panels.append(attention_panel(site.site, site.kind, shown.values, answer.view))
    return panels


def attention_panel(site: str, kind: str, values: NDArray[np.float32], box: CropBox) -> Panel:
    """A panel of one site on its own scale; `kind` as of `SiteInfo`."""
    remark = "" if np.isfinite(values).all() else NOT_FINITE
    return Panel(site, values, box, detail=KINDS.get(kind, kind), remark=remark)


def explanation_panels(answer: Classification) -> list[list[Panel]]:
    """For each layer a panel for each class, in the answer's own order, on the scale that the layer's panels share.

    A class has its probability in the title where the answer's predictions hold it.
    """
    found = [
        Evidence(each.layer, each.method, each.class_index, each.label, each.map.values, answer.view)
        for each in answer.explanations
        if each.map.values is not None
    ]
    return evidence_panels(found, {each.index: each.probability for each in answer.predictions})


def evidence_panels(found: Sequence[Evidence], probabilities: Mapping[int, float]) -> list[list[Panel]]:
    """The same of maps from anywhere; `probabilities` by class index."""
    layers = groupby(found, key=lambda each: (each.layer, each.method))
    return [_of_one_layer(list(group), probabilities) for _, group in layers]


def _of_one_layer(found: Sequence[Evidence], probabilities: Mapping[int, float]) -> list[Panel]:
    remarks = [_remark(each) for each in found]
    shown = [each.values for each, remark in zip(found, remarks, strict=True) if not remark]
    scale = (0.0, max((float(values.max()) for values in shown), default=0.0))
    return [
        Panel(
            f"{METHODS.get(each.method, each.method)}: {each.label}",
            each.values,
            each.box,
            ending=f" ({percent(probabilities[each.class_index])})" if each.class_index in probabilities else "",
            detail="last layer" if each.layer == LAST else each.layer,
            scale=scale,
            remark=remark,
        )
        for each, remark in zip(found, remarks, strict=True)
    ]


def _remark(found: Evidence) -> str:
    if not np.isfinite(found.values).all():
        return NOT_FINITE
    if found.values.any():
        return ""
    return f"nothing spoke {'against' if found.method == 'counterfactual' else 'for'} this class"


def header(picture: str, predictions: Sequence[Prediction], model: str, version: str) -> list[str]:
    """The lines above a figure: the picture, what it was taken for and by what."""
    named = "  ·  ".join(f"{each.label} ({percent(each.probability)})" for each in predictions)
    return [printable(line) for line in (picture, named, f"{model} version {version}")]


def percent(probability: float) -> str:
    """With one decimal, which never claims a certainty that is none."""
    if 0 < probability < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= probability < 1 else f"{probability:.1%}"
