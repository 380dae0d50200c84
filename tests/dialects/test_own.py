"""`attnserve.export.export`: a user's own torchvision network with our modules in it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnserve.card import Preprocessing
from attnserve.errors import ConfigError
from attnserve.export import export
from attnserve.export.bam import Bam
from attnserve.export.cbam import Cbam
from attnserve.export.own import Observed, describe, site_names

VIEW = Preprocessing(64, 64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def cbam(channels: int) -> Cbam:
    return Cbam(channels, 8, 3, spatial_order="max,avg", spatial_norm=True)


def plain(oracles: Any) -> Any:
    return oracles["torchvision"].build(18)


def after_stages(net: Any) -> Any:
    net.layer2 = nn.Sequential(net.layer2, cbam(128))
    net.layer4 = nn.Sequential(net.layer4, cbam(512))
    return net


def in_blocks(net: Any) -> Any:
    for stage in (1, 3):
        for block in net.get_submodule(f"layer{stage}"):
            block.bn2 = nn.Sequential(block.bn2, cbam(64 * 2 ** (stage - 1)))
    return net


class WithBam(nn.Module):
    """The same parts under the same names, with a forward of its own."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name, child in net.named_children():
            self.add_module(name, child)
        self.neck = Bam(128, combine="mul")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.neck(self.layer2(self.layer1(x)))))
        return self.fc(self.avgpool(x).flatten(1))


NETS = {
    "after stages": (after_stages, ["layer2.1", "layer4.1"], ["layer2.1", "layer4.1"]),
    "in blocks": (in_blocks, [f"layer{s}.{i}.bn2.1" for s in (1, 3) for i in (0, 1)], None),
    "own forward": (WithBam, ["stage2.neck"], ["neck"]),
    "no attention": (lambda net: net, [], []),
}


@pytest.mark.parametrize("kind", NETS)
def test_sites_are_found_by_type_and_named_by_stage(kind: str, oracles: Any, build: Any) -> None:
    make, sites, modules = NETS[kind]
    model = build(lambda: make(plain(oracles)))
    names = site_names(model, describe(model), VIEW)
    assert list(names.values()) == sites
    assert list(names) == (modules or sites)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        evidence = Observed(model, names).evidence(x)
        torch.testing.assert_close(evidence.logits, model(x), rtol=0, atol=0)
        torch.testing.assert_close(model.fc(evidence.features.mean((2, 3))), evidence.logits)
    assert list(evidence.maps) == sites


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.full) for kind in list(NETS)[1:]] + ["after stages"]
)
def test_a_users_network_becomes_an_entry(kind: str, oracles: Any, build: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build(lambda: NETS[kind][0](plain(oracles)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    card = export(model, tmp_path, "mine", VIEW, labels=[f"thing {i}" for i in range(10)])
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)

    assert [site.name for site in card.sites] == NETS[kind][1]
    assert card.labels[3] == "thing 3"
    for site in card.sites:
        assert site.height * site.stride == 64
    if kind == "own forward":
        assert (card.sites[0].kind, card.sites[0].combine, card.sites[0].stride) == ("bam", "mul", 8)
    session = onnxruntime.InferenceSession(tmp_path / "mine/1/model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    x = ((images / 255 - torch.tensor(VIEW.mean)) / torch.tensor(VIEW.std)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model(x)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    assert float((torch.from_numpy(logits) - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))


class Twice(WithBam):
    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.neck(self.neck(self.layer2(self.layer1(x))))))
        return self.fc(self.avgpool(x).flatten(1))


def shared(net: Any) -> Any:
    module = cbam(64)
    net.layer1 = nn.Sequential(net.layer1, module, module)
    return net


def idle(net: Any) -> Any:
    net.unused = cbam(64)
    return net


def mixed(net: Any) -> Any:
    net.layer1 = nn.Sequential(net.layer1, cbam(64))
    net.layer2 = nn.Sequential(net.layer2, Bam(128))
    return net


def reductions(net: Any) -> Any:
    net.layer1 = nn.Sequential(net.layer1, Cbam(64, 16))
    net.layer2 = nn.Sequential(net.layer2, Cbam(128, 4))
    return net


def kernels(net: Any) -> Any:
    net.layer1 = nn.Sequential(net.layer1, Cbam(64, kernel=7))
    net.layer2 = nn.Sequential(net.layer2, Cbam(128, kernel=3))
    return net


def other_pool(net: Any) -> Any:
    net.avgpool = nn.AdaptiveMaxPool2d(1)
    return net


def headless(net: Any) -> Any:
    net.fc = nn.Identity()
    return net


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (shared, "the same module as elsewhere"),
        (Twice, "neck runs more than once"),
        (idle, "does not run: unused"),
        (mixed, r"several kinds.*: layer1\.1 has kind cbam, layer2\.1 has kind bam$"),
        (kernels, r"layer1\.1 has kernel 7, layer2\.1 has kernel 3$"),
        (reductions, r"reductions.* layer1\.1 has 4 for 64, layer2\.1 has 32 for 128; build all with the same"),
        (other_pool, "mean of what `avgpool` is given"),
        (headless, "one linear layer last"),
        (lambda _: nn.Linear(3, 3), "no conv1, layer1"),
    ],
)
def test_what_cannot_be_shown_truly_is_refused(
    make: Any, reason: str, oracles: Any, build: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        export(build(lambda: make(plain(oracles))), tmp_path / "models", "mine", VIEW)
    assert caught.type is ConfigError
    assert not (tmp_path / "models").exists()


def test_wrong_labels_are_refused(oracles: Any, build: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 labels for 10 classes"):
        export(build(lambda: after_stages(plain(oracles))), tmp_path, "mine", VIEW, labels=["a", "b"])


def test_the_readme_s_example_runs(oracles: Any, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^((?:    .*\n|\n)*    export\(network, .*\n)", readme, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(block), {"network": build(lambda: after_stages(plain(oracles)))})
    assert Path("model_repo/mine/1/model.onnx").is_file()


def test_importing_the_package_does_not_import_torch() -> None:
    check = "import sys; from attnserve.export import export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
