"""Model FLOPs of a training step: what its matrix products take, forward and backward, as this model computes them.

Counted from the shapes of the batch, so that it costs nothing and no kernel, recomputation (activation checkpointing,
GradCache) or compiler changes it: the numerator of MFU as PaLM defines it (Chowdhery et al. 2022, appendix B). Norms,
softmax, embeddings and the optimizer are left out. A test holds it against torch's counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from training.model.config import AdaFocalConfig
    from training.model.qformer import Read
    from training.tower_config import TowerSection

_A100 = (312.0, 19.5)
PEAK_TFLOPS: dict[str, tuple[float, float]] = {
    "NVIDIA H200": (989.5, 67.0),
    "NVIDIA H100 80GB HBM3": (989.5, 67.0),
    "NVIDIA H100 PCIe": (756.0, 51.0),
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA L4": (121.0, 30.3),
}
"""A GPU's name, as torch gives it → dense peak of 16-bit tensor cores and of float32 outside them, by NVIDIA's data
sheets."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of one device by its full name; None where it is not known: a near name may have half the cores."""
    if device_name not in PEAK_TFLOPS:
        return None
    half, single = PEAK_TFLOPS[device_name]
    return 1e12 * (single if precision == "float32" else half)


class Shapes(NamedTuple):
    """What a worker's part of a batch looks like.

    Attributes:
        queries: b.
        targets: u, distinct targets encoded here.
        total: targets that every query is scored against, those of all workers.
        pieces: text tokens without padding, over all queries.
        longest: L, to which texts are padded in attention.
        modulate: whether the modulator runs.
    """

    queries: int
    targets: int
    total: int
    pieces: int
    longest: int
    modulate: bool


@dataclass(frozen=True)
class Work:
    """FLOPs of products in the forward pass.

    Attributes:
        both: of those whose operands both get a gradient: twice as many again in the backward pass.
        one: of those with a frozen operand: once as many again.
    """

    both: float = 0.0
    one: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.both + other.both, self.one + other.one)

    def times(self, count: int) -> Work:
        """So many of it."""
        return Work(count * self.both, count * self.one)

    @property
    def step(self) -> float:
        """Forward and backward."""
        return 3 * self.both + 2 * self.one


def step_flops(config: AdaFocalConfig, shapes: Shapes, tower: TowerSection) -> float | None:
    """FLOPs of a worker's part of a step; None for a method or a way to train the tower that is not counted here
    (adapters)."""
    work = _METHODS.get(config.model_type)
    if work is None or tower.mode == "lora":
        return None
    found: Work = work(config, shapes) + _targets(config, shapes)
    if tower.trained:
        found = Work(found.both + found.one)  # the image tokens get a gradient too
    images = shapes.queries + shapes.targets
    return found.step + (images * _tower_step(config, tower) if tower.online else 0.0)


def tower_flops(config: AdaFocalConfig) -> float:
    """FLOPs of the image tower's forward pass, for one image."""
    return _patches(config) + config.vision_config.num_hidden_layers * _block(config)


def _tower_step(config: AdaFocalConfig, tower: TowerSection) -> float:
    """Forward of one image, and backward through what is trained; pixels never get a gradient."""
    forward = tower_flops(config)
    if tower.mode == "last":
        return forward + 2 * tower.layers * _block(config)
    return 3 * forward - _patches(config) if tower.mode == "full" else forward


def _patches(config: AdaFocalConfig) -> float:
    return 2.0 * (config.num_image_tokens - 1) * 3 * config.patch_size**2 * config.vision_config.hidden_size


def _block(config: AdaFocalConfig) -> float:
    vision, tokens = config.vision_config, config.num_image_tokens
    width, inner = vision.hidden_size, vision.intermediate_size
    return float(2 * tokens * width * (4 * width + 2 * inner) + 4 * tokens * tokens * width)


def _adafocal(config: AdaFocalConfig, shapes: Shapes) -> Work:
    return (
        _modulator(config, shapes)
        + _pass(config, shapes, config.num_query_tokens, text=True, image=True, read="text_cls")
        + _compared(config, shapes)
    )


def _sprc(config: AdaFocalConfig, shapes: Shapes) -> Work:
    """One pass over the image, two over the prompts without it; queries and texts are both compared."""
    queries = config.num_query_tokens
    fused = _pass(config, shapes, queries, text=True, image=True, read="queries")
    prompted = _pass(config, shapes, queries, text=True, image=False, read="text_cls")
    compared = _compared(config, shapes)
    return _modulator(config, shapes) + fused + prompted + prompted + compared + compared


_METHODS: dict[str, Any] = {"adafocal": _adafocal, "sprc": _sprc}


def _targets(config: AdaFocalConfig, shapes: Shapes) -> Work:
    alone = _without_text(shapes, shapes.targets)
    projected = 2.0 * shapes.targets * config.num_query_tokens * config.qformer.hidden_size * config.embed_dim
    encoded = _pass(config, alone, config.num_query_tokens, text=False, image=True, read="queries")
    return encoded + Work(projected)


def _without_text(shapes: Shapes, queries: int) -> Shapes:
    """The shapes of so many images without texts."""
    return shapes._replace(queries=queries, pieces=0, longest=0)


def _compared(config: AdaFocalConfig, shapes: Shapes) -> Work:
    """A vector per query, and its products with every target's vectors."""
    d, queries = config.embed_dim, shapes.queries
    return Work(2.0 * queries * d * (config.qformer.hidden_size + shapes.total * config.num_query_tokens))


def _modulator(config: AdaFocalConfig, shapes: Shapes) -> Work:
    """The probes' pass and the CRM behind it."""
    if config.modulation not in ("scalar", "vector") or not shapes.modulate:
        return Work()
    width, probes, queries = config.qformer.hidden_size, config.num_probe_tokens, shapes.queries
    outputs = 1 if config.modulation == "scalar" else config.num_query_tokens
    flops = 2.0 * queries * config.beta_hidden * (width + outputs)
    if config.crm == "transformer":
        rows = probes + 1
        layer = 2 * rows * width * (4 * width + 2 * config.crm_feedforward) + 4 * rows * rows * width
        flops += queries * config.crm_layers * layer
    elif config.crm == "mlp":
        flops += 2.0 * queries * probes * width * width
    return _pass(config, shapes, probes, text=True, image=True, read="queries") + Work(flops)


def _pass(
    config: AdaFocalConfig, shapes: Shapes, tokens: int, *, text: bool, image: bool, read: Read
) -> Work:
    """One pass of the Q-Former with `tokens` per sample in the queries' places (see `model/qformer.py`)."""
    layers, every = config.qformer.num_hidden_layers, config.qformer.cross_attention_frequency
    body = layers - 1
    crossed = -(-body // every) if image else 0  # layers 0, every, 2·every, … but the last
    found = _layer(config, shapes, tokens, text=text, read="all").times(body)
    found += _layer(config, shapes, tokens, text=text, read=read)
    if image and read != "text_cls" and body % every == 0:
        crossed += 1
    return found + _cross(config, shapes.queries, tokens).times(crossed) if crossed else found


def _layer(config: AdaFocalConfig, shapes: Shapes, tokens: int, *, text: bool, read: Read) -> Work:
    """Self-attention and feed-forward of a layer."""
    width, inner = config.qformer.hidden_size, config.qformer.intermediate_size
    batch, pieces = shapes.queries, shapes.pieces if text else 0
    rows, length = batch * tokens + pieces, tokens + (shapes.longest if text else 0)
    if read == "text_cls":
        asking, per_sample = batch, 1
    elif read == "queries" and text:
        asking, per_sample = batch * tokens, tokens
    else:
        asking, per_sample = rows, length
    attention = 2 * width * width * (2 * rows + 2 * asking) + 4 * batch * per_sample * length * width
    return Work(attention + 4.0 * asking * width * inner)  # the feed-forwards of queries and text are alike


def _cross(config: AdaFocalConfig, batch: int, tokens: int) -> Work:
    """Cross-attention with absorbed projections: the image tokens themselves are frozen."""
    width, heads = config.qformer.hidden_size, config.qformer.num_attention_heads
    wide = config.vision_config.hidden_size
    rows = batch * tokens
    projected = 4.0 * rows * width * width + 4.0 * rows * width * wide + 2.0 * rows * width
    return Work(projected, 4.0 * rows * heads * wide * config.num_image_tokens)
