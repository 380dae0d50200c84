from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttentionLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTENTION_LEVEL_NONE: _ClassVar[AttentionLevel]
    ATTENTION_LEVEL_SUMMARY: _ClassVar[AttentionLevel]
    ATTENTION_LEVEL_FULL: _ClassVar[AttentionLevel]

class MapForm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MAP_FORM_RAW: _ClassVar[MapForm]
    MAP_FORM_NORMALISED: _ClassVar[MapForm]
    MAP_FORM_HEATMAP: _ClassVar[MapForm]
    MAP_FORM_OVERLAY: _ClassVar[MapForm]
ATTENTION_LEVEL_NONE: AttentionLevel
ATTENTION_LEVEL_SUMMARY: AttentionLevel
ATTENTION_LEVEL_FULL: AttentionLevel
MAP_FORM_RAW: MapForm
MAP_FORM_NORMALISED: MapForm
MAP_FORM_HEATMAP: MapForm
MAP_FORM_OVERLAY: MapForm

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "version", "images", "top_k", "attention", "id", "priority", "explain", "maps")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    images: _containers.RepeatedCompositeFieldContainer[Image]
    top_k: int
    attention: AttentionOptions
    id: str
    priority: int
    explain: ExplainOptions
    maps: MapOptions
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., top_k: _Optional[int] = ..., attention: _Optional[_Union[AttentionOptions, _Mapping]] = ..., id: _Optional[str] = ..., priority: _Optional[int] = ..., explain: _Optional[_Union[ExplainOptions, _Mapping]] = ..., maps: _Optional[_Union[MapOptions, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("encoded", "raw")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawImage
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("pixels", "height", "width", "channels")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    pixels: bytes
    height: int
    width: int
    channels: int
    def __init__(self, pixels: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ...) -> None: ...

class AttentionOptions(_message.Message):
    __slots__ = ("level", "sites")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    level: AttentionLevel
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, level: _Optional[_Union[AttentionLevel, str]] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainOptions(_message.Message):
    __slots__ = ("layers", "method", "classes", "top_k")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[str]
    method: str
    classes: _containers.RepeatedScalarFieldContainer[int]
    top_k: int
    def __init__(self, layers: _Optional[_Iterable[str]] = ..., method: _Optional[str] = ..., classes: _Optional[_Iterable[int]] = ..., top_k: _Optional[int] = ...) -> None: ...

class MapOptions(_message.Message):
    __slots__ = ("form", "colormap", "alpha")
    FORM_FIELD_NUMBER: _ClassVar[int]
    COLORMAP_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    form: MapForm
    colormap: str
    alpha: float
    def __init__(self, form: _Optional[_Union[MapForm, str]] = ..., colormap: _Optional[str] = ..., alpha: _Optional[float] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("model", "version", "id", "results", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    id: str
    results: _containers.RepeatedCompositeFieldContainer[ImageResult]
    timings: Timings
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[ImageResult, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class ImageResult(_message.Message):
    __slots__ = ("predictions", "attention", "view", "image_height", "image_width", "explanations")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    attention: _containers.RepeatedCompositeFieldContainer[AttentionMap]
    view: CropBox
    image_height: int
    image_width: int
    explanations: _containers.RepeatedCompositeFieldContainer[Explanation]
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., attention: _Optional[_Iterable[_Union[AttentionMap, _Mapping]]] = ..., view: _Optional[_Union[CropBox, _Mapping]] = ..., image_height: _Optional[int] = ..., image_width: _Optional[int] = ..., explanations: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("index", "label", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    probability: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class AttentionMap(_message.Message):
    __slots__ = ("site", "kind", "spatial", "channel", "combined", "entropy", "top_channels")
    SITE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SPATIAL_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    COMBINED_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    TOP_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    site: str
    kind: str
    spatial: SpatialMap
    channel: _containers.RepeatedScalarFieldContainer[float]
    combined: SpatialMap
    entropy: float
    top_channels: _containers.RepeatedCompositeFieldContainer[ChannelValue]
    def __init__(self, site: _Optional[str] = ..., kind: _Optional[str] = ..., spatial: _Optional[_Union[SpatialMap, _Mapping]] = ..., channel: _Optional[_Iterable[float]] = ..., combined: _Optional[_Union[SpatialMap, _Mapping]] = ..., entropy: _Optional[float] = ..., top_channels: _Optional[_Iterable[_Union[ChannelValue, _Mapping]]] = ...) -> None: ...

class ChannelValue(_message.Message):
    __slots__ = ("index", "value")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    index: int
    value: float
    def __init__(self, index: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("layer", "method", "class_index", "label", "map")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    layer: str
    method: str
    class_index: int
    label: str
    map: SpatialMap
    def __init__(self, layer: _Optional[str] = ..., method: _Optional[str] = ..., class_index: _Optional[int] = ..., label: _Optional[str] = ..., map: _Optional[_Union[SpatialMap, _Mapping]] = ...) -> None: ...

class SpatialMap(_message.Message):
    __slots__ = ("height", "width", "values", "min", "max", "mean", "empty", "png")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    values: bytes
    min: float
    max: float
    mean: float
    empty: bool
    png: bytes
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[bytes] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., mean: _Optional[float] = ..., empty: bool = ..., png: _Optional[bytes] = ...) -> None: ...

class CropBox(_message.Message):
    __slots__ = ("left", "top", "right", "bottom")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    left: float
    top: float
    right: float
    bottom: float
    def __init__(self, left: _Optional[float] = ..., top: _Optional[float] = ..., right: _Optional[float] = ..., bottom: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_ms", "queue_ms", "infer_ms", "explain_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFER_MS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    queue_ms: float
    infer_ms: float
    explain_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., infer_ms: _Optional[float] = ..., explain_ms: _Optional[float] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("sequence", "code", "message", "response", "retry_after_ms")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    code: int
    message: str
    response: ClassifyResponse
    retry_after_ms: int
    def __init__(self, sequence: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "version", "ready", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    ready: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., ready: bool = ..., reason: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "labels", "image_height", "image_width", "sites", "max_batch_size", "execution_provider", "card_json", "card_digest", "explain_layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    CARD_JSON_FIELD_NUMBER: _ClassVar[int]
    CARD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    image_height: int
    image_width: int
    sites: _containers.RepeatedCompositeFieldContainer[Site]
    max_batch_size: int
    execution_provider: str
    card_json: str
    card_digest: str
    explain_layers: _containers.RepeatedCompositeFieldContainer[ExplainLayer]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., image_height: _Optional[int] = ..., image_width: _Optional[int] = ..., sites: _Optional[_Iterable[_Union[Site, _Mapping]]] = ..., max_batch_size: _Optional[int] = ..., execution_provider: _Optional[str] = ..., card_json: _Optional[str] = ..., card_digest: _Optional[str] = ..., explain_layers: _Optional[_Iterable[_Union[ExplainLayer, _Mapping]]] = ...) -> None: ...

class Site(_message.Message):
    __slots__ = ("name", "kind", "channels", "height", "width", "stride", "combine", "has_channel", "has_spatial", "min_value", "max_value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    COMBINE_FIELD_NUMBER: _ClassVar[int]
    HAS_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    HAS_SPATIAL_FIELD_NUMBER: _ClassVar[int]
    MIN_VALUE_FIELD_NUMBER: _ClassVar[int]
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    channels: int
    height: int
    width: int
    stride: int
    combine: str
    has_channel: bool
    has_spatial: bool
    min_value: float
    max_value: float
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., channels: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., stride: _Optional[int] = ..., combine: _Optional[str] = ..., has_channel: bool = ..., has_spatial: bool = ..., min_value: _Optional[float] = ..., max_value: _Optional[float] = ...) -> None: ...

class ExplainLayer(_message.Message):
    __slots__ = ("layer", "height", "width", "stride", "methods")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    layer: str
    height: int
    width: int
    stride: int
    methods: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, layer: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., stride: _Optional[int] = ..., methods: _Optional[_Iterable[str]] = ...) -> None: ...
