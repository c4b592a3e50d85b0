"""AdaFocal: query encoder with context-aware attention on the anchored region, and target encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from infra.base.errors import OacirError
from training.losses import query_to_target
from training.model import vision
from training.model.caam import ContextAwareAttentionModulator, FixedModulator
from training.model.config import AdaFocalConfig
from training.model.explain import Explanation, explain
from training.model.interfaces import Loss, Modulation, Modulator, QueryOutput, Rep
from training.model.qformer import (
    AttentionMaps,
    ImageMemory,
    QFormer,
    QFormerLayer,
    Text,
    TextEmbeddings,
    image_memory,
)
from training.scoring import max_over_set

QUERY_STD = 0.02
ALIGNED_FEEDFORWARD = 0.2
"""Scale of the feed-forwards' output weights in an aligned start."""
ALIGNED_CROSS_ATTENTION = 3.0
"""Scale of the cross-attentions' output weights in an aligned start."""


class AdaFocalModel(PreTrainedModel):
    """AdaFocal (Sec. 4 of the OACIR paper, arithmetic of the release).

    Image tokens [B, N, D] are those of the frozen tower before the trained LayerNorm, from `encode_pixels` or a feature
    store. Built without the tower (`with_tower=False`) the model trains on stored tokens; `attach_tower` completes it.
    The constructor leaves weights unset: use `random_model`, `from_pretrained` or `convert.from_release`.
    """

    config_class = AdaFocalConfig
    base_model_prefix = "adafocal"
    main_input_name = "reference_tokens"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # as eager; `attn_implementation` chooses for the tower and the Q-Former
    own_parts: ClassVar[tuple[str, ...]] = ("caam.",)
    """Prefixes of the weights that other checkpoints of the family lack: a fine-tuning may start them from a seed."""
    # A checkpoint holds the tower; a model built without one leaves it aside.
    _keys_to_ignore_on_load_unexpected = (r"^vision_model\.",)

    def __init__(self, config: AdaFocalConfig, with_tower: bool = True) -> None:
        super().__init__(config)
        qformer, width = config.qformer, config.qformer.hidden_size
        for part in (config.vision_config, qformer):
            part._attn_implementation = config._attn_implementation
        self.vision_model: vision.Tower | None = (
            vision.build_tower(config.vision_config) if with_tower else None
        )
        self.vision_norm = nn.LayerNorm(config.vision_config.hidden_size, eps=config.vision_norm_eps)
        self.embeddings = TextEmbeddings(qformer)
        self.qformer = QFormer(qformer)
        self.query_tokens = nn.Parameter(
            torch.zeros(1, config.num_query_tokens, width), requires_grad=config.trainable_queries
        )
        self.vision_projection = nn.Linear(width, config.embed_dim)
        self.text_projection = nn.Linear(width, config.embed_dim)
        self.temp = nn.Parameter(torch.tensor(float(config.initial_temperature)))
        self.caam = (
            ContextAwareAttentionModulator(config) if config.modulation in ("scalar", "vector") else None
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `random_model` starts all weights from a seed, loading refuses missing ones."""

    @classmethod
    def _from_config(cls, config: AdaFocalConfig, **kwargs: Any) -> Self:
        """What `AutoModel.from_config` calls: random weights, another draw of torch's global generator each time."""
        seed = int(torch.randint(2**31, (), device="cpu"))
        model = super()._from_config(config, **kwargs)
        if model.device.type == "meta":
            return model
        wanted = model.dtype
        initialise(model.float(), seed)  # LAPACK has no half precision
        return model.to(wanted)

    @classmethod
    def from_pretrained(cls, directory: Any, *args: Any, with_tower: bool = True, **kwargs: Any) -> Any:
        """Load what `save_pretrained` wrote, in eval mode.

        Args:
            directory: folder with config.json and the safetensors files.
            args: passed on to transformers.
            with_tower: False leaves the frozen tower out.
            kwargs: passed on to transformers.

        Returns:
            The model; with `output_loading_info` also what transformers says of the loading.

        Raises:
            OacirError: weights are missing from the folder or of another shape (nothing is ever left at random).
        """
        told = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            directory,
            *args,
            with_tower=with_tower,
            output_loading_info=True,
            **{"ignore_mismatched_sizes": True, **kwargs},  # they are refused below, by name
        )
        if other := sorted(info["mismatched_keys"]):
            name, found, wanted = other[0]
            raise OacirError(
                f"model {directory}: {len(other)} weights have other shapes than config.json says, first {name}"
                f" {list(found)} instead of {list(wanted)}; restore the config.json they were saved with"
            )
        missing = sorted(info["missing_keys"])
        if missing:
            raise OacirError(
                f"model {directory}: {len(missing)} weights are missing, first {missing[0]}; export the model with its "
                "tower, or load with with_tower=False and attach_tower"
            )
        return (model, info) if told else model

    def train(self, mode: bool = True) -> Self:
        """As in torch; the tower stays in eval mode, so that nothing of it is dropped."""
        super().train(mode)
        if self.vision_model is not None:
            self.vision_model.eval()
            for block in self.vision_model.encoder.layers:
                # the block alone, not its parts: transformers computes one again in the backward pass only if it trains
                block.training = mode and any(p.requires_grad for p in block.parameters())
        return self

    @property
    def temperature(self) -> Tensor:
        """The learnable temperature, a scalar parameter; unclamped as in the release."""
        return self.temp

    @property
    def tower(self) -> vision.Tower:
        """The image tower, frozen unless `towers.prepare_tower` lets something of it learn.

        Raises:
            OacirError: the model was built without one.
        """
        if self.vision_model is None:
            raise OacirError("this model was built without its image tower: load it with with_tower=True")
        return self.vision_model

    def attach_tower(self, tower: vision.Tower) -> None:
        """Complete a model that was built without its tower, so that `save_pretrained` writes everything."""
        self.vision_model = tower.requires_grad_(False).eval()

    def tower_state_hash(self) -> str:
        """sha256 over the frozen tower's weights and shape options: the key of stored tokens."""
        return vision.state_hash(self.tower)

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What is trained, in the groups that have a learning rate of their own: "caam", "rest" and "tower"."""
        groups: dict[str, list[nn.Parameter]] = {"caam": [], "rest": [], "tower": []}
        prefixes = {"caam.": "caam", "vision_model.": "tower"}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                group = next((g for prefix, g in prefixes.items() if name.startswith(prefix)), "rest")
                groups[group].append(parameter)
        return groups

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] → tokens [B, N, D] of the tower, before the trained LayerNorm.

        No gradient, unless something of the tower is trained (`towers.prepare_tower`).

        Raises:
            OacirError: images of another size than the tower's, whose positions would be wrong.
        """
        side = self.config.image_size
        if pixels.shape[1:] != (3, side, side):
            raise OacirError(
                f"pixels {list(pixels.shape)} are not [B, 3, {side}, {side}]; take the model's processor"
            )
        return vision.tower_tokens(self.tower, pixels)

    def image_tokens(self, images: Tensor) -> Tensor:
        """Tokens [B, N, D] as they are; pixels [B, 3, S, S] through the tower."""
        return self.encode_pixels(images) if images.dim() == 4 else images

    @property
    def modulator(self) -> Modulator | None:
        """What makes the bias of the query's attention; None for β = 0."""
        if self.caam is not None:
            return self.caam
        return FixedModulator(self.config) if self.config.fixed_beta else None

    @property
    def objective(self) -> tuple[tuple[float, Loss], ...]:
        """The weighted losses this method is trained by."""
        return ((1.0, query_to_target),)

    def encode_query(
        self,
        tokens: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        patch_mask: Tensor | None,
        modulate: bool | None = None,
        maps: AttentionMaps | None = None,
    ) -> QueryOutput:
        """Encode reference, text and region.

        Args:
            tokens: reference image tokens [B, N, D], or pixels [B, 3, S, S], which go through the tower first.
            input_ids: text token ids [B, L], [CLS] first.
            attention_mask: 1 for tokens, 0 for padding [B, L].
            patch_mask: 1 where the region touches a patch [B, N]; a row of zeros means no region, None none at all.
            modulate: whether the modulator runs. As in the release it does where any query of the batch has a region;
                who holds a part of a larger batch says so for all of it, so that no worker skips what others wait
                for. None decides by `patch_mask`.
            maps: filled with the attention weights of the (first) query pass if given.

        Raises:
            OacirError: shapes that do not fit each other, or a text that does not start in its first column.
        """
        tokens = self.image_tokens(tokens)
        self._check(tokens, input_ids, attention_mask, patch_mask)
        image, text = image_memory(tokens, self.vision_norm), self.embeddings(input_ids, attention_mask)
        modulation = self._modulation(image, text, patch_mask, modulate)
        hidden, extras = self.fuse(image, text, None if modulation is None else modulation.bias, maps)
        embedding = F.normalize(self.text_projection(hidden), dim=-1)
        return QueryOutput(embedding, None if modulation is None else modulation.beta, extras)

    def fuse(
        self, image: ImageMemory, text: Text, bias: Tensor | None, maps: AttentionMaps | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The state [B, H] that becomes the query vector, and what the method's own losses need."""
        return self.qformer(self.query_tokens, text, image, bias, "text_cls", maps), {}

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one image's Rep: (M, d)."""
        return self.config.num_query_tokens, self.config.embed_dim

    def encode_target(self, tokens: Tensor) -> Rep:
        """Image tokens [B, N, D], or pixels [B, 3, S, S] → M unit vectors per image, [B, M, d]."""
        tokens = self.image_tokens(tokens)
        hidden = self.qformer(self.query_tokens, None, image_memory(tokens, self.vision_norm), read="queries")
        return F.normalize(self.vision_projection(hidden), dim=-1)

    def score(self, queries: Rep, targets: Rep, chunk: int | None = None) -> Tensor:
        """Every query against every target, [Q, T]; see `scoring.max_over_set`."""
        return max_over_set(queries, targets, chunk)

    def forward(
        self,
        reference_tokens: Tensor,
        target_tokens: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        patch_mask: Tensor | None,
        modulate: bool | None = None,
    ) -> tuple[QueryOutput, Rep]:
        """Queries and targets of a batch; shapes as in `encode_query` and `encode_target`."""
        query = self.encode_query(reference_tokens, input_ids, attention_mask, patch_mask, modulate)
        return query, self.encode_target(target_tokens)

    def explain(
        self,
        tokens: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        patch_mask: Tensor | None,
        target_tokens: Tensor | None = None,
    ) -> Explanation:
        """Why these queries find what they find: β, attention with and without it, the winning target token.

        Arguments as in `encode_query`, and the image tokens of one candidate per query [B, N, D]; see `explain.py`.
        """
        return explain(self, tokens, input_ids, attention_mask, patch_mask, target_tokens)

    def initialise_own_parts(self, generator: torch.Generator) -> None:
        """Random weights for what `own_parts` names."""
        if self.caam is not None:
            self.caam.initialise(generator)

    def _check(
        self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, patch_mask: Tensor | None
    ) -> None:
        """What would broadcast, shift positions or fail far from here."""
        batch, longest = len(tokens), self.config.qformer.max_position_embeddings
        wanted = {
            "input_ids": (input_ids, (batch, input_ids.shape[-1])),
            "attention_mask": (attention_mask, tuple(input_ids.shape)),
            "patch_mask": (patch_mask, (batch, tokens.shape[1])),
        }
        wrong = [
            f"{name} {list(found.shape)} is not {list(shape)}"
            for name, (found, shape) in wanted.items()
            if found is not None and found.shape != shape
        ]
        if wrong:
            raise OacirError(f"a query with tokens {list(tokens.shape)}: {'; '.join(wrong)}")
        if input_ids.shape[1] > longest:
            raise OacirError(f"texts of {input_ids.shape[1]} tokens, the model has positions for {longest}")
        if not bool(attention_mask[:, 0].all()):
            raise OacirError("a text starts with padding or is empty; pad on the right, [CLS] first")

    def _modulation(
        self, image: ImageMemory, text: Text, patch_mask: Tensor | None, modulate: bool | None
    ) -> Modulation | None:
        if patch_mask is None or self.modulator is None:
            return None
        if not (bool(patch_mask.any()) if modulate is None else modulate):
            return None
        return self.modulator(self.qformer, image, text, patch_mask)


def initialise(model: AdaFocalModel, seed: int, tower_seed: int | None = None) -> None:
    """Give a model of this family random weights; the same configuration and seed give the same weights.

    Tower, Q-Former and CAAM draw from generators of their own: towers agree across modulations (one feature store
    serves them all), and so do the Q-Formers. The tower takes `tower_seed` where one is given.
    """
    tower_generator, qformer_generator, own_generator = _generators(seed, 3)
    if tower_seed is not None:
        tower_generator = next(_generators(tower_seed, 1))
    if model.vision_model is not None:
        vision.initialise_tower(model.vision_model, tower_generator)
    _initialise_qformer(model, qformer_generator)
    if model.config.aligned_start:
        _align(model, qformer_generator)
    model.initialise_own_parts(own_generator)


@torch.no_grad()
def _align(model: AdaFocalModel, generator: torch.Generator) -> None:
    """Let what the tokens hold pass to the outputs nearly unchanged, so that query and target start in one space.

    Self-attention's value map starts orthogonal and its output map as the inverse, the feed-forwards start small, what
    cross-attention reads of the image starts large beside the queries, and both projections start equal. From BERT's
    start they are unrelated, and a run of a few hundred steps is over before they meet; how soon they do then
    depends on the seed.
    """
    for layer in model.qformer.modules():
        if not isinstance(layer, QFormerLayer):
            continue
        attention = layer.attention
        value = nn.init.orthogonal_(attention.attention.value.weight, generator=generator)
        attention.output.dense.weight.copy_(value.T)
        if layer.crossattention is not None:
            layer.crossattention.output.dense.weight.mul_(ALIGNED_CROSS_ATTENTION)
        layer.output.dense.weight.mul_(ALIGNED_FEEDFORWARD)
        layer.output_query.dense.weight.mul_(ALIGNED_FEEDFORWARD)
    model.text_projection.weight.copy_(model.vision_projection.weight)


def _generators(seed: int, count: int) -> Iterator[torch.Generator]:
    for offset in range(count):
        yield torch.Generator().manual_seed(seed * 1_000_003 + offset)


@torch.no_grad()
def _initialise_qformer(model: AdaFocalModel, generator: torch.Generator) -> None:
    """BERT's start: weights N(0, initializer_range), zero biases, unit LayerNorms, zero padding word."""
    std = model.config.qformer.initializer_range
    nn.init.normal_(model.query_tokens, std=QUERY_STD, generator=generator)
    for part in (
        model.vision_norm,
        model.embeddings,
        model.qformer,
        model.vision_projection,
        model.text_projection,
    ):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std, generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
