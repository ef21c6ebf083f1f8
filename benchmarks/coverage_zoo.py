"""The models of the three sets, with random weights, each with inputs as its own library's users give them.

Nothing is fetched. The example inputs are small where the network allows it: exactness and coverage don't depend on
their size, and the time of a row does. Detectors get few proposals and no threshold on scores, so that the branches
behind the detections are seen although the weights are random.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from common import MissingError
from torch import nn

from surgeon import Inputs

Kwargs = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A model in eval mode and what its forward takes."""

    model: nn.Module
    inputs: Inputs


def build(name_of_set: str, name: str) -> Example:
    """One model of a set, from a fixed seed. Raises MissingError where the set's library isn't installed."""
    torch.manual_seed(0)
    model, inputs = BUILDERS[name_of_set](name)
    return Example(woken(model).eval(), Inputs.of(inputs))


def woken(model: nn.Module) -> nn.Module:
    """Draw the weights that a library begins at zero (some heads): trained ones are not, and zero proves nothing."""
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
    return model


def names(name_of_set: str) -> tuple[str, ...]:
    """The models of a set. Raises MissingError where the set's library isn't installed."""
    return LISTS[name_of_set]()


def needed(package: str) -> Any:
    """An optional package. Raises MissingError where it isn't installed."""
    try:
        return importlib.import_module(package)
    except ImportError as reason:
        raise MissingError(f"{package} isn't installed: {reason}") from reason


# ---------------------------------------------------------------- torchvision

REGIONS: Kwargs = {
    "min_size": 320, "max_size": 320, "rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20,
    "box_score_thresh": 0.0, "box_detections_per_img": 10,
}  # fmt: skip
DENSE: Kwargs = {"min_size": 320, "max_size": 320, "score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 20}
SINGLE: Kwargs = {name: value for name, value in DENSE.items() if "size" not in name}
SEGMENTATION = ("deeplabv3", "fcn_", "lraspp")
DETECTORS: dict[str, Kwargs] = {
    "fasterrcnn": REGIONS, "maskrcnn": REGIONS, "keypointrcnn": REGIONS,
    "retinanet": DENSE, "fcos": DENSE, "ssd": SINGLE,
}  # fmt: skip
SIDES = {"inception_v3": 299, "swin_v2": 256}
CLIPS = {
    "mvit": (16, 224),
    "swin3d": (16, 112),
    "s3d": (16, 224),
    "r3d": (16, 112),
    "mc3": (16, 112),
    "r2plus1d": (16, 112),
}
FLOW_SIDE = 128  # the least that RAFT takes


def torchvision_names() -> tuple[str, ...]:
    """All of torchvision's models but the quantised ones."""
    return tuple(name for name in torchvision.models.list_models() if not name.startswith("quantized_"))


def torchvision_model(name: str) -> tuple[nn.Module, Any]:
    """A model of torchvision, and its inputs by its kind."""
    detector = first(DETECTORS, name)
    kwargs = detector or {}
    if detector or name.startswith(SEGMENTATION):
        kwargs = {**kwargs, "weights_backbone": None}
    model = torchvision.models.get_model(name, weights=None, **kwargs)
    clip = first(CLIPS, name)
    if detector:
        return model, [torch.rand(3, 320, 320)]
    if clip:
        return model, torch.rand(1, 3, clip[0], clip[1], clip[1])
    if name.startswith("raft"):
        return model, (torch.rand(1, 3, FLOW_SIDE, FLOW_SIDE), torch.rand(1, 3, FLOW_SIDE, FLOW_SIDE))
    return model, torch.randn(1, 3, *[first(SIDES, name) or 224] * 2)


def first(table: dict[str, Any], name: str) -> Any:
    """The entry whose key the name begins with, or None."""
    return next((value for key, value in table.items() if name.startswith(key)), None)


# ---------------------------------------------------------------- timm

#: The smallest variant of each module of timm.models, and of each further architecture that shares a module.
TIMM = (
    "bat_resnext26ts", "beit_base_patch16_224", "botnet26t_256", "caformer_s18", "cait_xxs24_224", "coat_tiny",
    "coatnet_pico_rw_224", "convformer_s18", "convit_tiny", "convmixer_768_32", "convnext_zepto_rms",
    "convnextv2_atto", "cpubone_nano", "crossvit_tiny_240", "cs3darknet_s", "csatv2", "cspdarknet53", "cspnext_tiny",
    "cspresnet50", "darknet17", "davit_tiny", "deepseek_vit_412m", "deit_tiny_distilled_patch16_224", "densenet121",
    "dla46x_c", "dla34", "dm_nfnet_f0", "dpn48b", "eca_nfnet_l0", "eca_resnext26ts", "ecaresnet26t",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientnet_lite0", "efficientnetv2_rw_t",
    "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_slim_dw", "eva02_tiny_patch14_224",
    "fasternet_t0", "fastvit_t8", "fbnetc_100", "fbnetv3_b", "flexivit_small", "focalnet_tiny_srf", "gcresnext26ts",
    "gcvit_xxtiny", "gemma4_vit_167m", "gernet_s", "ghostnet_050", "ghostnetv2_100", "gmixer_12_224", "gmlp_ti16_224",
    "halonet26t", "hardcorenas_b", "hgnet_tiny", "hgnetv2_b0", "hiera_tiny_224", "hieradet_small", "hrnet_w18_small",
    "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4", "lambda_resnet26t",
    "lcnet_035", "lcnetv2_small", "legacy_seresnet18", "legacy_xception", "levit_128s", "lowformer_b0",
    "mambaout_femto", "maxvit_pico_rw_256", "mixer_s32_224", "mixnet_s", "mnasnet_small", "mobilenetv2_035",
    "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "mobilenetv5_base", "mobileone_s1", "mobilevit_xxs",
    "mobilevitv2_050", "mvitv2_tiny", "naflexvit_base_patch16_gap", "nasnetalarge", "nest_tiny", "nextvit_small",
    "nf_regnet_b0", "pit_ti_224", "pnasnet5large", "poolformer_s12", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny",
    "regnetv_040", "regnetx_002", "regnety_002", "regnetz_005", "repghostnet_050", "repvgg_a0", "repvit_m0_9",
    "res2next50", "resmlp_12_224", "resnest14d", "resnet10t", "resnetblur18", "resnetv2_18", "rexnet_100",
    "samvit_base_patch16_224", "sebotnet33ts_256", "selecsls42", "semnasnet_050", "sequencer2d_s",
    "seresnext26t_32x4d", "shvit_s1", "skresnet18", "spnasnet_100", "starnet_s050", "swiftformer_xs",
    "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "tinynet_e",
    "tnt_s_patch16_224", "tresnet_m", "twins_pcpvt_small", "twins_svt_small", "vgg11_bn", "visformer_tiny",
    "vit_relpos_small_patch16_224", "vit_tiny_patch16_224", "vit_tiny_patch16_dinov3_qkvb", "vit_tiny_r_s16_p8_224",
    "vitamin_small_224", "volo_d1_224", "xception41", "xcit_nano_12_p16_224",
)  # fmt: skip
#: Smaller images than the model's own, where it takes them.
TIMM_SIDES = {
    "csatv2": 256, "deepseek_vit_412m": 224, "gemma4_vit_167m": 240, "naflexvit_base_patch16_gap": 224,
    "nasnetalarge": 224, "pnasnet5large": 224, "qwen3_vit_88m": 224,
}  # fmt: skip


def timm_names() -> tuple[str, ...]:
    """The chosen models, where timm is installed."""
    needed("timm")
    return TIMM


def timm_model(name: str) -> tuple[nn.Module, Any]:
    """A model of timm, and one image of its own size."""
    model = needed("timm").create_model(name, pretrained=False)
    channels, *size = model.default_cfg["input_size"]
    side = TIMM_SIDES.get(name)
    return model, torch.randn(1, channels, *([side, side] if side else size))


# ---------------------------------------------------------------- the table of sets


def huggingface(what: str) -> Any:
    """A function of the module that knows transformers; imported late, since that takes seconds."""
    return getattr(needed("coverage_hf"), what)


Builder = Callable[[str], tuple[nn.Module, Any]]
BUILDERS: dict[str, Builder] = {
    "torchvision": torchvision_model,
    "timm": timm_model,
    "huggingface": lambda name: huggingface("model")(name),
}
LISTS: dict[str, Callable[[], tuple[str, ...]]] = {
    "torchvision": torchvision_names,
    "timm": timm_names,
    "huggingface": lambda: tuple(huggingface("MODELS")),
}
