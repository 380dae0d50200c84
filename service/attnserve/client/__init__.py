"""The Python client of `attnserve.v1`: pictures in, predictions and the maps behind them out as numpy arrays.

Knows the protocol only: no server module, no onnxruntime, no torch. Import the names from here. Reading order:
`messages` (what goes in and comes out), `translation` (to and from the wire), `errors` (what a failed call becomes),
`retry` (whether it is tried again), `security` (TLS and the token), `calls` (the terms of a call, the reading of
replies), then the two that call: `blocking`, and `aio` with `aio_stream`.
"""

from __future__ import annotations

from attnserve.client.aio import AsyncClient
from attnserve.client.blocking import Client
from attnserve.client.errors import ClientError
from attnserve.client.messages import (
    AttentionLevel,
    AttentionMap,
    Classification,
    Explain,
    ExplainLayer,
    Explanation,
    MapForm,
    MapStyle,
    ModelInfo,
    ModelStatus,
    Picture,
    Prediction,
    SiteInfo,
    SpatialMap,
    Timings,
)
from attnserve.client.retry import Retry
from attnserve.client.security import Tls
from attnserve.preprocess import CropBox

__all__ = [
    "AsyncClient",
    "AttentionLevel",
    "AttentionMap",
    "Classification",
    "Client",
    "ClientError",
    "CropBox",
    "Explain",
    "ExplainLayer",
    "Explanation",
    "MapForm",
    "MapStyle",
    "ModelInfo",
    "ModelStatus",
    "Picture",
    "Prediction",
    "Retry",
    "SiteInfo",
    "SpatialMap",
    "Timings",
    "Tls",
]
