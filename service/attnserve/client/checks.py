"""What is wrong with a wish for evidence before it becomes a message: protobuf's own errors name no field.

Knows no message and no call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from attnserve.client.messages import Explain


def check_explain(explain: Explain) -> None:
    """Raise `TypeError` or `ValueError` that names the field that is wrong."""
    if isinstance(explain.layers, str) or not all(isinstance(layer, str) for layer in explain.layers):
        raise TypeError(f"explain: layers must be a sequence of names, got {explain.layers!r}")
    if not isinstance(explain.method, str):
        raise TypeError(f"explain: method must be a name, got {explain.method!r}")
    if isinstance(explain.classes, int | str):
        raise TypeError(f"explain: classes must be a sequence of class indices, got {explain.classes!r}")
    for field, numbers in (("classes", explain.classes), ("top_k", (explain.top_k,))):
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                hint = "; `ModelInfo.labels.index(label)` is a label's index" if field == "classes" else ""
                raise TypeError(f"explain: {field} must be whole numbers, got {number!r}{hint}")
            if not 0 <= number < 1 << 32:
                raise ValueError(f"explain: {field} must be from 0 to 4294967295, got {number}")
