"""Sizes and switches of AdaFocal and of SPRC on the same parts, and their named presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Blip2QFormerConfig, Blip2VisionConfig, CLIPVisionConfig, PretrainedConfig

from infra.base.errors import OacirError

MODULATIONS = ("none", "fixed", "scalar", "vector")
BIAS_SCALES = ("released", "paper")
CRM_KINDS = ("transformer", "mlp", "average")
TOWERS = {kind.model_type: kind for kind in (Blip2VisionConfig, CLIPVisionConfig)}
"""Kinds of image tower, by the `model_type` of their configuration."""


class AdaFocalConfig(PretrainedConfig):
    """Configuration of `AdaFocalModel`; `save_pretrained` and `from_pretrained` as in transformers.

    Args:
        vision_config: the frozen image tower: `Blip2VisionConfig`, `CLIPVisionConfig`, or the dict of one; its
            `model_type` says which, without it is BLIP-2's.
        qformer: the multimodal encoder (`Blip2QFormerConfig` or its dict); its `encoder_hidden_size` follows the tower.
        num_query_tokens: M, learnable fusion queries; also the vectors per target image.
        num_probe_tokens: K, learnable probe tokens of the CAAM.
        embed_dim: d, width of the common space.
        modulation: "none" (β = 0, no CAAM), "fixed" (constant `fixed_beta`, no CAAM), "scalar" (one β per query),
            "vector" (one β per fusion query).
        fixed_beta: the constant of modulation "fixed"; not negative.
        bias_scale: "released" adds β·mask to QKᵀ/√d, "paper" (Eq. 2) adds it before the division by √d.
        crm: what reads the probes: "transformer" (the release's), "mlp" or "average".
        crm_layers, crm_heads, crm_feedforward, crm_dropout: the transformer of the contextual reasoning module.
        beta_hidden: width of its head.
        trainable_probes: False keeps the probe tokens as they start.
        initial_temperature: start of the learnable temperature of the loss.
        beta_scale: factor of the learned β: β = beta_scale · softplus(head), so that it also scales how fast β learns.
        initial_beta: where a random model's β starts; None leaves it to the head's random weights (about 0.7).
        aligned_start: a random model starts with query and target in one space (see `adafocal.initialise`).
        max_text_tokens: word pieces per text, [CLS] and [SEP] included.
        trainable_queries: False freezes the fusion queries (the paper's text; the release trains them).
        vision_norm_eps: eps of the trained LayerNorm behind the tower.
        pad_ratio: images are padded to at most this ratio of long to short side before resize and crop.

    Raises:
        OacirError: a value outside its range, or sizes that do not fit each other; all problems at once.
    """

    model_type = "adafocal"

    vision_config: Any = None
    qformer: Any = None
    num_query_tokens: int = 32
    num_probe_tokens: int = 8
    embed_dim: int = 256
    modulation: str = "scalar"
    fixed_beta: float = 0.0
    bias_scale: str = "released"
    crm: str = "transformer"
    trainable_probes: bool = True
    crm_layers: int = 2
    crm_heads: int = 8
    crm_feedforward: int = 2048
    crm_dropout: float = 0.1
    beta_hidden: int = 512
    initial_temperature: float = 0.07
    beta_scale: float = 1.0
    initial_beta: float | None = None
    aligned_start: bool = False
    max_text_tokens: int = 32
    trainable_queries: bool = True
    vision_norm_eps: float = 1e-5
    pad_ratio: float = 1.25

    def __post_init__(self, **kwargs: Any) -> None:
        """Nested dicts become configurations; sizes are checked against each other."""
        if not isinstance(self.vision_config, PretrainedConfig):
            self.vision_config = _tower_config(self.vision_config or {})
        if not isinstance(self.qformer, PretrainedConfig):
            self.qformer = Blip2QFormerConfig(**{"vocab_size": 30523, **(self.qformer or {})})
        self.qformer.use_qformer_text_input = True
        self.qformer.encoder_hidden_size = self.vision_config.hidden_size
        super().__post_init__(**kwargs)
        problems = self._problems()
        if problems:
            raise OacirError("model: " + "; ".join(problems))

    @property
    def image_size(self) -> int:
        """Side of the square input image, pixels."""
        return int(self.vision_config.image_size)

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return int(self.vision_config.patch_size)

    @property
    def num_image_tokens(self) -> int:
        """N: the class token and one token per patch."""
        return 1 + (self.image_size // self.patch_size) ** 2

    def _problems(self) -> list[str]:
        qformer, vision = self.qformer, self.vision_config
        positive = ("num_query_tokens", "num_probe_tokens", "embed_dim", "crm_layers", "crm_heads")
        checks = [
            (self.modulation in MODULATIONS, f"modulation {self.modulation!r} is not one of {MODULATIONS}"),
            (self.bias_scale in BIAS_SCALES, f"bias_scale {self.bias_scale!r} is not one of {BIAS_SCALES}"),
            (self.crm in CRM_KINDS, f"crm {self.crm!r} is not one of {CRM_KINDS}"),
            (self.fixed_beta >= 0, f"fixed_beta {self.fixed_beta} is negative, β is at least 0"),
            (
                self.modulation == "fixed" or self.fixed_beta == 0,
                f"fixed_beta {self.fixed_beta} has no effect with modulation {self.modulation!r}, set it to 'fixed'",
            ),
            (
                self.initial_beta is None or self.initial_beta > 0,
                f"initial_beta {self.initial_beta} is not positive",
            ),
            (self.beta_scale > 0, f"beta_scale {self.beta_scale} is not positive"),
            (self.initial_temperature > 0, f"initial_temperature {self.initial_temperature} is not positive"),
            *(
                (getattr(self, name) > 0, f"{name} {getattr(self, name)} is not positive")
                for name in positive
            ),
            (
                _divides(vision.patch_size, vision.image_size),
                f"vision_config.image_size {vision.image_size} is no multiple of patch_size {vision.patch_size}",
            ),
            *(
                (_divides(heads, width), f"{name}: width {width} is no multiple of {heads} heads")
                for name, width, heads in (
                    ("vision_config", vision.hidden_size, vision.num_attention_heads),
                    ("qformer", qformer.hidden_size, qformer.num_attention_heads),
                    ("crm_heads", qformer.hidden_size, self.crm_heads),
                )
            ),
            (
                self.max_text_tokens <= qformer.max_position_embeddings,
                f"max_text_tokens {self.max_text_tokens} exceeds qformer.max_position_embeddings "
                f"{qformer.max_position_embeddings}",
            ),
        ]
        return [message for fine, message in checks if not fine]


class SprcConfig(AdaFocalConfig):
    """Configuration of `SprcModel`: AdaFocal's sizes and modulations (SPRC† has one), and the weights of its losses.

    Args:
        rtc_weight: of the contrast between text with prompts alone and target.
        align_weight: of the distance between fused tokens and prompts.
    """

    model_type = "sprc"

    rtc_weight: float = 0.4
    align_weight: float = 0.4


METHODS: dict[str, type[AdaFocalConfig]] = {c.model_type: c for c in (AdaFocalConfig, SprcConfig)}
"""Method → its configuration class; `auto.MODELS` has the models."""


def _divides(part: int, whole: int) -> bool:
    return part > 0 and whole % part == 0


def _tower_config(tree: Mapping[str, Any]) -> PretrainedConfig:
    kind = tree.get("model_type", Blip2VisionConfig.model_type)
    if kind not in TOWERS:
        raise OacirError(f"model: vision_config.model_type {kind!r} is not one of {sorted(TOWERS)}")
    return TOWERS[kind](**{key: value for key, value in tree.items() if key != "model_type"})


PRESETS: dict[str, dict[str, Any]] = {
    # Learns from nothing in a few hundred steps on a CPU. Every value that differs from BLIP-2's was chosen for that:
    # small patches, because objects are small; cross-attention in each of two layers; no dropout, because an epoch is
    # never repeated often; BERT's 0.02 is meant for width 768 and starts here with nearly equal outputs.
    "tiny": {
        "vision_config": {
            "image_size": 64, "patch_size": 4, "hidden_size": 128, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 256,
        },
        "qformer": {
            "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
            "cross_attention_frequency": 1, "vocab_size": 1000, "max_position_embeddings": 32,
            "initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        "num_query_tokens": 8, "num_probe_tokens": 4, "embed_dim": 64, "crm_feedforward": 192,
        "crm_dropout": 0.0, "beta_hidden": 64, "initial_beta": 6.0, "aligned_start": True,
    },
    # EVA ViT-g/14 of BLIP-2 and its BERT-base Q-Former: the defaults of the two transformers classes.
    "vit_g": {},
    # CLIP ViT-L/14 without its last block, as BLIP-2 uses it, under the same Q-Former.
    "vit_l": {
        "vision_config": {
            "model_type": "clip_vision_model", "image_size": 224, "patch_size": 14, "hidden_size": 1024,
            "num_hidden_layers": 23, "num_attention_heads": 16, "intermediate_size": 4096,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    },
}  # fmt: skip


def preset(name: str, method: str = "adafocal", **overrides: Any) -> AdaFocalConfig:
    """A named configuration: "tiny" (CPU), "vit_g" (the paper's) or "vit_l" (its smaller variant).

    Args:
        name: one of `PRESETS`.
        method: one of `METHODS`.
        overrides: fields of `AdaFocalConfig`; dotted keys reach the nested ones: `**{"qformer.hidden_size": 64}`.

    Raises:
        OacirError: an unknown preset or method, an unknown key, or a value that does not fit.
    """
    if method not in METHODS:
        raise OacirError(f"model method {method!r} is unknown, choose one of {sorted(METHODS)}")
    if name not in PRESETS:
        raise OacirError(f"model preset {name!r} is unknown, choose one of {sorted(PRESETS)}")
    tree: dict[str, Any] = {"vision_config": {}, "qformer": {}}
    for key, value in PRESETS[name].items():
        tree[key] = dict(value) if isinstance(value, dict) else value
    own = {**AdaFocalConfig.__annotations__, **METHODS[method].__annotations__}
    plain = set(own) - {"vision_config", "qformer", "model_type"}
    nested = {"vision_config": _tower_config(tree["vision_config"]), "qformer": Blip2QFormerConfig()}
    for key, value in overrides.items():
        section, _, field = key.rpartition(".")
        if key in plain:
            tree[key] = value
        elif section in nested and hasattr(nested[section], field):
            tree[section][field] = value
        else:
            raise OacirError(
                f"model override {key!r} is unknown, choose one of {sorted(plain)} or a field of "
                "vision_config.* or qformer.*"
            )
    return METHODS[method](**tree)
