"""Every source of checkpoints we know, one row each; the first that fits a file names it.

Owns the facts; what is done with them is `loader`'s. The names are those of the sources as of 2026.
"""

from __future__ import annotations

from attnserve.card import Preprocessing
from attnserve.export.architecture import Transformer
from attnserve.export.dialects import by_shape
from attnserve.export.dialects.dialect import Dialect, Rename

Colour = tuple[float, float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # mean and deviation of the ViT authors' weights and of what timm trained like them
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

SMALL = Preprocessing(32, 32, None, "bilinear", CIFAR_MEAN, CIFAR_STD)  # what a 3x3 stem was made for: CIFAR
USUAL = {"imagenet": Preprocessing(224, 224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD), "small": SMALL}
"""Resize 256, crop 224, bilinear: torchvision's first weights, the authors' code, PytorchInsight, luuuyi, pytorchcv."""
TIMM = {"imagenet": Preprocessing(224, 224, 235, "bicubic", IMAGENET_MEAN, IMAGENET_STD), "small": SMALL}
"""timm's default for resnet18..101: crop_pct 0.95, so floor(224 / 0.95) = 235, bicubic."""


def patches(resize: int, interpolation: str, mean: Colour, std: Colour) -> dict[str, Preprocessing]:
    """The view of a transformer of 224 pixels; for another size the loader scales it."""
    return {"patches": Preprocessing(224, 224, resize, interpolation, mean, std)}


BACKBONE = (
    Rename(r"(conv1|bn1|fc)\.(\w+)", "{1}.{2}"),
    Rename(r"layer(\d)\.(\d+)\.(conv\d|bn\d|downsample\.[01])\.(\w+)", "layer{1}.{2}.{3}.{4}"),
)
SITE, PART = r"(?:layer\d\.\d+\.(?:cbam|bam)|(?:cbam|bam)\d)", r"(?:channel|spatial)\.(?:mlp\.\d|conv|bn|\d+)"
OURS = (*BACKBONE, Rename(rf"({SITE}\.{PART}\.\w+)", "{1}"))


def in_blocks(parts: dict[str, str]) -> tuple[Rename, ...]:
    """Rows for the parts of a CBAM in every block."""
    return tuple(
        Rename(rf"layer(\d)\.(\d+)\.{theirs}\.(\w+)", f"layer{{1}}.{{2}}.cbam.{ours}.{{3}}")
        for theirs, ours in parts.items()
    )


JONGCHAN_CBAM = in_blocks(
    {
        r"cbam\.ChannelGate\.mlp\.1": "channel.mlp.0",
        r"cbam\.ChannelGate\.mlp\.3": "channel.mlp.2",
        r"cbam\.SpatialGate\.spatial\.conv": "spatial.conv",
        r"cbam\.SpatialGate\.spatial\.bn": "spatial.bn",
    }
)
LUUUYI = in_blocks({r"ca\.fc\.0": "channel.mlp.0", r"ca\.fc\.2": "channel.mlp.2", r"sa\.conv1": "spatial.conv"})
LUUUYI_OLD = in_blocks({r"ca\.fc1": "channel.mlp.0", r"ca\.fc2": "channel.mlp.2", r"sa\.conv1": "spatial.conv"})
TIMM_SE = in_blocks(
    {
        r"se\.channel\.fc1": "channel.mlp.0",
        r"se\.channel\.fc2": "channel.mlp.2",
        r"se\.spatial\.conv\.conv": "spatial.conv",
        r"se\.spatial\.conv\.bn": "spatial.bn",
    }
)
CHANNEL, SPATIAL = r"bam(\d)\.channel_att\.gate_c\.gate_c_", r"bam(\d)\.spatial_att\.gate_s\.gate_s_"
JONGCHAN_BAM = (
    Rename(CHANNEL + r"fc_0\.(\w+)", "bam{1}.channel.0.{2}"),
    Rename(CHANNEL + r"bn_1\.(\w+)", "bam{1}.channel.1.{2}"),
    Rename(CHANNEL + r"fc_final\.(\w+)", "bam{1}.channel.3.{2}"),
    Rename(SPATIAL + r"conv_reduce0\.(\w+)", "bam{1}.spatial.0.{2}"),
    Rename(SPATIAL + r"bn_reduce0\.(\w+)", "bam{1}.spatial.1.{2}"),
    Rename(SPATIAL + r"conv_di_0\.(\w+)", "bam{1}.spatial.3.{2}"),
    Rename(SPATIAL + r"bn_di_0\.(\w+)", "bam{1}.spatial.4.{2}"),
    Rename(SPATIAL + r"conv_di_1\.(\w+)", "bam{1}.spatial.6.{2}"),
    Rename(SPATIAL + r"bn_di_1\.(\w+)", "bam{1}.spatial.7.{2}"),
    Rename(SPATIAL + r"conv_final\.(\w+)", "bam{1}.spatial.9.{2}"),
)
UNIT = r"features\.stage(\d)\.unit(\d+)\."
PYTORCHCV = (  # its units count from 1
    Rename(r"features\.init_block\.conv\.conv\.(\w+)", "conv1.{1}"),
    Rename(r"features\.init_block\.conv\.bn\.(\w+)", "bn1.{1}"),
    Rename(r"output\.(\w+)", "fc.{1}"),
    Rename(UNIT + r"(?:res_unit\.)?body\.conv(\d)\.(conv|bn)\.(\w+)", "layer{1}.{2-1}.{4}{3}.{5}"),
    Rename(UNIT + r"(?:res_unit\.)?identity_conv\.conv\.(\w+)", "layer{1}.{2-1}.downsample.0.{3}"),
    Rename(UNIT + r"(?:res_unit\.)?identity_conv\.bn\.(\w+)", "layer{1}.{2-1}.downsample.1.{3}"),
)
PYTORCHCV_CBAM = (
    Rename(UNIT + r"cbam\.ch_gate\.mlp\.fc1\.(\w+)", "layer{1}.{2-1}.cbam.channel.mlp.0.{3}"),
    Rename(UNIT + r"cbam\.ch_gate\.mlp\.fc2\.(\w+)", "layer{1}.{2-1}.cbam.channel.mlp.2.{3}"),
    Rename(UNIT + r"cbam\.sp_gate\.conv\.(conv|bn)\.(\w+)", "layer{1}.{2-1}.cbam.spatial.{3}.{4}"),
)
FIRST = r"features\.stage(\d)\.unit1\.bam\."  # at the start of a stage: after the stage before
PYTORCHCV_BAM = (
    Rename(FIRST + r"ch_att\.init_fc\.fc\.(\w+)", "bam{1-1}.channel.0.{2}"),
    Rename(FIRST + r"ch_att\.init_fc\.bn\.(\w+)", "bam{1-1}.channel.1.{2}"),
    Rename(FIRST + r"ch_att\.final_fc\.(\w+)", "bam{1-1}.channel.3.{2}"),
    Rename(FIRST + r"sp_att\.init_conv\.conv\.(\w+)", "bam{1-1}.spatial.0.{2}"),
    Rename(FIRST + r"sp_att\.init_conv\.bn\.(\w+)", "bam{1-1}.spatial.1.{2}"),
    Rename(FIRST + r"sp_att\.dil_convs\.conv1\.conv\.(\w+)", "bam{1-1}.spatial.3.{2}"),
    Rename(FIRST + r"sp_att\.dil_convs\.conv1\.bn\.(\w+)", "bam{1-1}.spatial.4.{2}"),
    Rename(FIRST + r"sp_att\.dil_convs\.conv2\.conv\.(\w+)", "bam{1-1}.spatial.6.{2}"),
    Rename(FIRST + r"sp_att\.dil_convs\.conv2\.bn\.(\w+)", "bam{1-1}.spatial.7.{2}"),
    Rename(FIRST + r"sp_att\.final_conv\.(\w+)", "bam{1-1}.spatial.9.{2}"),
)

TIMM_VIT = (
    Rename(r"(cls_token|pos_embed)", "{1}"),
    Rename(r"(patch_embed\.proj|norm|head)\.(weight|bias)", "{1}.{2}"),
    Rename(r"blocks\.(\d+)\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)", "blocks.{1}.{2}.{3}"),
)
LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION_VIT = (  # its first weights called the perceptron's layers linear_1 and linear_2
    Rename(r"class_token", "cls_token"),
    Rename(r"encoder\.pos_embedding", "pos_embed"),
    Rename(r"conv_proj\.(weight|bias)", "patch_embed.proj.{1}"),
    Rename(LAYER + r"ln_([12])\.(weight|bias)", "blocks.{1}.norm{2}.{3}"),
    Rename(LAYER + r"self_attention\.in_proj_(weight|bias)", "blocks.{1}.attn.qkv.{2}"),
    Rename(LAYER + r"self_attention\.out_proj\.(weight|bias)", "blocks.{1}.attn.proj.{2}"),
    Rename(LAYER + r"mlp\.(?:0|linear_1)\.(weight|bias)", "blocks.{1}.mlp.fc1.{2}"),
    Rename(LAYER + r"mlp\.(?:3|linear_2)\.(weight|bias)", "blocks.{1}.mlp.fc2.{2}"),
    Rename(r"encoder\.ln\.(weight|bias)", "norm.{1}"),
    Rename(r"heads\.head\.(weight|bias)", "head.{1}"),
)


def usual_heads(transformer: Transformer) -> int | None:
    """Heads of 64 channels, as in every published size up to Large (1024); Huge and beyond have no one rule."""
    heads, rest = divmod(transformer.width, 64)
    return heads if heads <= 16 and not rest else None


def cbam(order: str) -> dict[str, object]:
    """A CBAM's unseen facts: both pools, no further residual, and this order."""
    return {"spatial_order": order, "pooling": "avg+max", "residual": False}


SAME = "; PytorchInsight writes the same names and computes the same"
PRODUCT = {"combine": "mul", "dilation": 4}

DIALECTS = (
    Dialect("attnserve", "weights of our own network, without the rest of our checkpoint", ("cbam", "bam"), OURS, USUAL,
            cbam("avg,max") | {"combine": "add", "dilation": 4}),
    Dialect("torchvision", "torchvision resnet18..101", ("plain",), BACKBONE, USUAL),
    Dialect("timm", "timm resnet18..101", ("plain",), BACKBONE, TIMM),
    Dialect("jongchan-cbam", f"Jongchan/attention-module, CBAM{SAME}", ("cbam",), (*BACKBONE, *JONGCHAN_CBAM), USUAL,
            cbam("max,avg")),
    Dialect("jongchan-bam", f"Jongchan/attention-module, BAM{SAME}", ("bam",), (*BACKBONE, *JONGCHAN_BAM), USUAL,
            PRODUCT),
    Dialect("luuuyi", "luuuyi/CBAM.PyTorch since 2019", ("cbam",), (*BACKBONE, *LUUUYI), USUAL, cbam("avg,max")),
    Dialect("luuuyi-old", "luuuyi/CBAM.PyTorch before 2019", ("cbam",), (*BACKBONE, *LUUUYI_OLD), USUAL,
            cbam("avg,max")),
    Dialect("pytorchcv-cbam", "pytorchcv cbam_resnet18..101", ("cbam",), (*PYTORCHCV, *PYTORCHCV_CBAM), USUAL,
            cbam("max,avg")),
    Dialect("pytorchcv-bam", "pytorchcv bam_resnet18..101", ("bam",), (*PYTORCHCV, *PYTORCHCV_BAM), USUAL, PRODUCT),
    Dialect("timm-cbam", "timm resnets with attn_layer='cbam'", ("cbam",), (*BACKBONE, *TIMM_SE), TIMM,
            cbam("avg,max")),
    Dialect("timm-lcbam", "timm resnets with attn_layer='lcbam'", ("lcbam",), (*BACKBONE, *TIMM_SE), TIMM,
            {"residual": False}),
    Dialect("notebook", "a Sequential `features` of torchvision's stages with CBAM after them", ("cbam",), OURS, USUAL,
            cbam("avg,max"), by_shape.notebook),
    Dialect("cbam-by-shape", "torchvision's names, with CBAM modules of any other name", ("cbam",), OURS, USUAL,
            {"pooling": "avg+max"}, by_shape.anywhere),
    Dialect("torchvision-vit", "torchvision vit_b_16, vit_b_32, vit_l_16, vit_l_32", ("vit",), TORCHVISION_VIT,
            patches(256, "bilinear", IMAGENET_MEAN, IMAGENET_STD), {"heads": usual_heads}),
    Dialect("timm-vit", "timm vit_*_patch*", ("vit",), TIMM_VIT, patches(248, "bicubic", HALF, HALF),
            {"heads": usual_heads}),
    Dialect("deit", "facebookresearch/deit and timm deit_*_patch16, not distilled", ("vit",), TIMM_VIT,
            patches(248, "bicubic", IMAGENET_MEAN, IMAGENET_STD), {"heads": usual_heads}),
)  # fmt: skip
"""In order of preference: a later row is used only where no earlier one fits, or where it is asked for by name."""
