"""Which maps of an answer are shown: in what order, under which title and on what scale.

Owns the words and the scales; knows no drawing surface, file, server or page.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from attnserve.card import LAST
from attnserve.client.messages import Classification, Explanation, SiteInfo
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
            detail = KINDS.get(site.kind, site.kind)
            remark = "" if np.isfinite(shown.values).all() else NOT_FINITE
            panels.append(Panel(site.site, shown.values, answer.view, detail=detail, remark=remark))
    return panels


def explanation_panels(answer: Classification) -> list[list[Panel]]:
    """For each layer a panel for each class, in the answer's own order, on the scale that the layer's panels share.

    A class has its probability in the title where the answer's predictions hold it.
    """
    probabilities = {each.index: f" ({percent(each.probability)})" for each in answer.predictions}
    layers = groupby(answer.explanations, key=lambda each: (each.layer, each.method))
    return [_of_one_layer(list(group), answer, probabilities) for _, group in layers]


def _of_one_layer(
    explanations: Sequence[Explanation], answer: Classification, probabilities: dict[int, str]
) -> list[Panel]:
    found = [(each, each.map.values) for each in explanations if each.map.values is not None]
    remarks = [_remark(each.method, bool(np.isfinite(values).all()), not values.any()) for each, values in found]
    shown = [values for (_, values), remark in zip(found, remarks, strict=True) if not remark]
    scale = (0.0, max((float(values.max()) for values in shown), default=0.0))
    return [
        Panel(
            f"{METHODS.get(each.method, each.method)}: {each.label}",
            values,
            answer.view,
            ending=probabilities.get(each.class_index, ""),
            detail="last layer" if each.layer == LAST else each.layer,
            scale=scale,
            remark=remark,
        )
        for (each, values), remark in zip(found, remarks, strict=True)
    ]


def _remark(method: str, finite: bool, empty: bool) -> str:
    if not finite:
        return NOT_FINITE
    return f"nothing spoke {'against' if method == 'counterfactual' else 'for'} this class" if empty else ""


def percent(probability: float) -> str:
    """With one decimal, which never claims a certainty that is none."""
    if 0 < probability < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= probability < 1 else f"{probability:.1%}"
