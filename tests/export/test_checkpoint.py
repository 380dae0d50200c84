"""Our checkpoints: what they hold, and what a hostile or damaged file gets."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attnserve.errors import ConfigError
from attnserve.export.architecture import Attention
from attnserve.export.checkpoint import Checkpoint


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path, tiny_checkpoint: Callable[..., Checkpoint]) -> None:
    saved = tiny_checkpoint(Attention("cbam", "stage", (2, 3), 4, 3, "avg"))
    saved.evaluation = [{"split": "test", "accuracy": 0.5}]
    saved.save(tmp_path / "new" / "net.pt")
    loaded = Checkpoint.load(tmp_path / "new" / "net.pt")
    assert (loaded.architecture, loaded.preprocessing, loaded.labels, loaded.training, loaded.evaluation) == (
        saved.architecture, saved.preprocessing, saved.labels, saved.training, saved.evaluation
    )  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.network()(x), saved.network()(x), rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.pt"]


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path, legacy: bool) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.pt"
    torch.save({"state_dict": Malicious(touched)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match=r"evil\.pt"):
        Checkpoint.load(path)
    assert not touched.exists()


def test_what_is_not_our_checkpoint_is_refused(tmp_path: Path) -> None:
    foreign, text, pickled = tmp_path / "foreign.pt", tmp_path / "text.pt", tmp_path / "plain.pkl"
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}, "arch": "resnet50"}, foreign)
    text.write_text("not a checkpoint")
    pickled.write_bytes(pickle.dumps([1, 2], protocol=2))
    for path in (foreign, text, pickled, tmp_path / "absent.pt"):
        with pytest.raises(ConfigError, match=path.name):
            Checkpoint.load(path)


def test_weights_of_another_architecture_are_refused(tiny_checkpoint: Callable[..., Checkpoint]) -> None:
    checkpoint = tiny_checkpoint(Attention("cbam", reduction=4))
    del checkpoint.state_dict["layer2.0.cbam.spatial.conv.weight"]
    with pytest.raises(ConfigError, match=r"layer2\.0\.cbam"):
        checkpoint.network()
