"""Recipes of training: which model, which frozen features, how it learns and on how many workers. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from infra.base.config import Config, Name, recipe_hash
from training.tower_config import TowerSection
from training.tracking import TrackingSection

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

CAAM_FIELDS = ("crm", "crm_layers", "probe_tokens", "trainable_probes")
"""Fields of a recipe's model that only the CAAM has."""


class ModelSection(Config):
    """The model and where its weights come from."""

    preset: Literal["tiny", "vit_g", "vit_l"] = "tiny"
    """Named sizes: tiny (CPU), vit_g (the paper's) or vit_l (its smaller variant)."""
    method: Literal["adafocal", "sprc"] = "adafocal"
    """AdaFocal, or SPRC (two passes, three losses; with a modulation it is SPRC†)."""
    weights: str | None = None
    """A directory of save_pretrained (what `oacir convert` writes), a finished run, or a Hub id; null starts from
    random weights. Nothing else is fetched."""
    seed: int = 0
    """Seed of the random weights."""
    tower_seed: int | None = None
    """Seed of a random image tower, so that models of several seeds read one feature store; null takes `seed`."""
    modulation: Literal["none", "fixed", "scalar", "vector"] = "scalar"
    """Where β comes from: none (β = 0), fixed, or the CAAM's scalar or vector."""
    fixed_beta: Annotated[float, Field(ge=0)] = 0.0
    """The constant β of modulation fixed."""
    crm: Literal["transformer", "mlp", "average"] = "transformer"
    """What reads the probes: the paper's transformer, an MLP over all of them, or their average."""
    trainable_probes: bool = True
    """False keeps the probe tokens as they start."""
    probe_tokens: Positive | None = None
    """K, probe tokens of the CAAM; null keeps the preset's or the weights' own."""
    crm_layers: Positive | None = None
    """Depth of the contextual reasoning module; null keeps the preset's or the weights' own."""
    bias_scale: Literal["released", "paper"] = "released"
    """released: bias after the division by √d; paper: before it (Eq. 2)."""
    trainable_queries: bool = True
    """False freezes the fusion queries."""
    region: Literal["box", "mask"] = "box"
    """What marks the object: its box, or its mask; a query without a mask is asked with its box, and counted."""
    reference_view: Literal["full", "crop", "drawn"] = "full"
    """What of the reference is encoded: full, crop (the pixels of the box alone; no region then), or drawn (the box
    drawn on it in red)."""
    text_entity: Literal["none", "named", "drawn"] = "none"
    """Whether the text says which object is meant: none, named (Setting 1: its category, in one of eight sentences) or
    drawn (Setting 2: the object in the red box)."""
    tokenizer: str | None = None
    """A tokenizer directory or Hub id; null takes the weights' own, and with random weights trains one on the
    training texts."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the model's configuration; dotted keys reach the nested ones (qformer.hidden_size)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.modulation != "fixed" and self.fixed_beta:
            raise ValueError("fixed_beta has an effect only with modulation 'fixed'")
        if self.reference_view == "crop" and self.modulation != "none":
            raise ValueError("reference_view 'crop' leaves no region to modulate; set modulation to none")
        if self.text_entity == "drawn" and self.reference_view != "drawn":
            raise ValueError("text_entity 'drawn' speaks of a red box; set reference_view to drawn")
        without = "no" if self.modulation == "none" else f"a {self.modulation}"
        if self.modulation in ("none", "fixed") and (idle := self._changed(CAAM_FIELDS)):
            raise ValueError(
                f"{', '.join(idle)}: no effect with {without} β; set modulation to scalar or vector"
            )
        if self.modulation == "none" and self.bias_scale != "released":
            raise ValueError("bias_scale has an effect only with a modulation")
        if self.crm != "transformer" and self.crm_layers is not None:
            raise ValueError(f"crm_layers has an effect only with crm transformer, not {self.crm}")
        twice = sorted(set(self.overrides) & set(type(self).model_fields))
        if self.probe_tokens is not None and "num_probe_tokens" in self.overrides:
            twice.append("probe_tokens")
        if twice:
            raise ValueError(f"{', '.join(twice)}: a field of its own, set it there and not in overrides")
        if self.region == "mask" and self.modulation == "none" and self.reference_view == "full":
            raise ValueError("region 'mask' has an effect only with a modulation or another reference_view")
        return self

    def _changed(self, fields: Sequence[str]) -> list[str]:
        return [name for name in fields if getattr(self, name) != type(self).model_fields[name].default]

    def warning(self) -> str | None:
        """What to know before anything is computed with this model; None where there is nothing."""
        if self.weights is not None or self.preset == "tiny":
            return None
        return (
            f"model.weights is null: the image tower of {self.preset} is random and stays so, and the model learns"
            " from what it sees; set model.weights to a folder that `oacir convert` wrote, a finished run or a Hub id"
        )


class EmbedSection(Config):
    """How the frozen tower's tokens are computed and stored."""

    batch_size: Positive = 32
    """Images per forward of the tower."""
    images_per_shard: Positive = 512
    """Images per file; a killed run repeats at most the files in work."""
    dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"
    """Type of the stored tokens; int8 has a scale for each token and takes half the room of bfloat16."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the tower; on a GPU bfloat16 is several times faster. Its tokens are others, in a store of their
    own."""
    decode_threads: Positive = 4
    """Threads of a worker that read and decode the next images while the tower computes."""
    workers: Positive | None = None
    """Parallel workers; null takes one per CPU (or GPU) of the session."""


class TrainingSection(Config):
    """How the model learns."""

    epochs: Positive = 20
    """Passes over the training quadruples."""
    steps: Positive | None = None
    """Stop after this many steps, with the schedule ending there; null runs all epochs."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Quadruples per step over all workers."""
    leave_out_domains: tuple[str, ...] = ()
    """Domains that nothing is trained on or chosen by; evaluated as ever, they give the cross-domain figures."""
    one_domain_per_batch: bool = False
    """Draw each batch from one domain, so that all its negatives are of the same kind as the target."""
    queries_of_an_instance: Positive = 1
    """Up to so many queries of one instance follow each other in a batch: the same object in other contexts, the
    hardest negatives. Queries of one target are then often together too."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak rate of everything but the CAAM."""
    caam_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak rate of the CAAM (probe tokens, CRM, β head)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW's decoupled decay, on every trained parameter as in the release."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """AdamW's betas."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps in which the rate rises linearly from zero."""
    schedule: Literal["cosine", "constant", "linear", "onecycle"] = "cosine"
    """Course of the rate after the warm-up; cosine and linear end at zero. onecycle is torch's OneCycleLR: it starts at
    1/100 of the peak, ends at a millionth of it, and takes AdamW's first beta from 0.95 to 0.85 and back."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average of the weights over the steps, which is then what is measured and exported; null has none."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass; weights, loss and optimizer stay float32. float16 scales the loss, and skips
    (and counts) a step whose gradient overflows."""
    micro_batch_size: Positive | None = None
    """Most queries that a worker encodes at once; null all of its share."""
    negatives: Literal["batch", "micro_batch"] = "batch"
    """What a query is told from. batch: the targets of the whole batch (GradCache: each micro-batch is encoded twice,
    the gradient is that of the batch). micro_batch: those of its micro-batch on all workers alone, encoded once."""
    false_negatives: Literal["keep", "same_target", "equivalent"] = "keep"
    """Right answers among a query's negatives. keep: they count as wrong, as in the paper. same_target: its own target
    image does not, wherever else it appears. equivalent: nor do its further targets and images that show the same photo
    as one of them (the same bytes, or near-duplicates as the build found them)."""
    reference_negatives: bool = False
    """Tell every query from all references of the batch, too, its own among them; each is encoded as a target."""
    memory_bank: Annotated[int, Field(ge=0)] = 0
    """Targets of earlier steps, as they were encoded then, that every query is told from too; 0 has none."""
    activation_checkpointing: bool = False
    """Keep only what goes into each layer, and compute the layer again in the backward pass: less memory, about a third
    more time, the same numbers."""
    compile: bool = False
    """Compile the encoders' layers with torch.compile; the first steps then take minutes."""
    seed: int = 0
    """Seed of the order of the quadruples and of dropout."""
    dev_every_epochs: Positive | None = 1
    """Measure on the dev gallery after every so many epochs (and at the end); null never."""
    dev_batch_size: Positive = 256
    """Images per forward of the dev measurement, over all workers."""
    select: Literal["last", "best_on_dev"] = "last"
    """Which weights are exported: the last, or those with the best dev mean of R_ID@1, R@1 and R@5."""
    patience: Positive | None = None
    """Stop after so many dev measurements in a row without a new best mean; null trains to the end."""
    checkpoint_every_steps: Positive = 50
    """Longest distance of checkpoints; early ones lie closer, so that a kill repeats at most a tenth of the steps. They
    lie farther apart where writing them would take more than a tenth of the time (after the first 30 s of it)."""
    checkpoints_kept: Annotated[int, Field(ge=2)] = 2
    """Complete checkpoints kept while training."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.select == "best_on_dev" and self.dev_every_epochs is None:
            raise ValueError("select 'best_on_dev' needs dev_every_epochs")
        if self.patience is not None and self.select != "best_on_dev":
            raise ValueError("patience waits for a better dev measurement; set select to best_on_dev")
        if self.negatives == "micro_batch" and (self.micro_batch_size or 1) < 2:
            raise ValueError(
                "negatives 'micro_batch' contrasts within micro-batches; set micro_batch_size to 2 or more"
            )
        if self.micro_batch_size is not None and self.micro_batch_size >= self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} never cuts a batch of {self.batch_size}; set it below,"
                " or to null"
            )
        if self.schedule == "onecycle" and self.betas != type(self)().betas:
            raise ValueError("schedule 'onecycle' cycles the first of betas; leave betas away")
        return self


class ScalingSection(Config):
    """On what it runs."""

    workers: Positive = 2
    """Training workers (one process each); with `min_workers` the most."""
    min_workers: Positive | None = None
    """Fewest workers. Training then begins with as many as there is room for, goes on with fewer when machines go, and
    with more when they come, from a checkpoint; the batch stays; null takes exactly `workers`, and waits for them."""
    look_every_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between looks for room for more workers; each change of their number costs a new start."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage, what is divided among the workers: nothing (0), the optimizer's state (1), gradients too
    (2), weights too (3: for a tower that is trained; measuring on dev makes the model whole for the while)."""
    offload_optimizer: bool = False
    """The optimizer's state and its step in the host's memory instead of the GPU's."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs that Ray reserves per worker."""
    threads_per_worker: Positive = 1
    """CPU threads of torch in each worker."""
    use_gpu: bool = False
    """One GPU per worker."""
    features_in: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where each worker keeps the frozen tokens: on its GPU, in pinned memory of the host, or mapped from disk; auto
    takes the first of these that they fit in with room to spare, on a CPU mapped."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Worker losses after which training goes on by itself from the last complete checkpoint; counted anew once there
    is a newer one. Workers and machines that leave with notice do not count."""
    hang_s: Annotated[float, Field(gt=0)] | None = 600.0
    """Seconds without a finished step (or piece of a measurement) after which workers are taken for hanging, and
    started anew as lost ones are; null waits as long as collectives do, half an hour."""

    @property
    def fewest(self) -> int:
        """Workers without which training does not begin."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fewest > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}, the most")
        if self.zero_stage == 0 and self.offload_optimizer:
            raise ValueError("offload_optimizer needs a zero_stage from 1 to 3")
        return self


class TrainRecipe(Config):
    """What `embed` and `train` read."""

    name: Name = "adafocal"
    """Name of the run."""
    dataset: str = "world"
    """The benchmark: a path or URL of a version, name/key, or name (the newest of it)."""
    features: str | None = None
    """The feature store: a path or URL, name/key or name; null takes the one that `embed` makes of this recipe."""
    model: ModelSection = Field(default_factory=ModelSection)
    """The model."""
    embed: EmbedSection = Field(default_factory=EmbedSection)
    """The frozen features."""
    training: TrainingSection = Field(default_factory=TrainingSection)
    """The learning."""
    tower: TowerSection = Field(default_factory=TowerSection)
    """The image tower while training."""
    scaling: ScalingSection = Field(default_factory=ScalingSection)
    """The machines."""
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    """How it is watched."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.scaling.zero_stage == 0 and self.training.precision == "float16":
            raise ValueError("training.precision 'float16' needs a scaling.zero_stage from 1 to 3")
        if self.scaling.zero_stage == 3 and self.training.compile:
            raise ValueError("training.compile needs whole weights; set scaling.zero_stage to 0, 1 or 2")
        if self.tower.online and self.features is not None:
            raise ValueError(
                f"features has no effect with tower.mode {self.tower.mode!r}, which reads pixels; leave it away"
            )
        if self.tower.crop is not None and self.model.reference_view == "crop":
            raise ValueError(
                "tower.crop: with model.reference_view 'crop' only the object's box is seen, there is nothing around it"
                " to cut away; leave tower.crop away"
            )
        return self

    def identity(self, dataset_hash: str, feature_key: str) -> str:
        """The key of a run: equal for recipes that give equal results on this data.

        Left out is where things lie, on what they are executed and how they are watched: a run goes on with other
        workers, threads or ZeRO stages than it began with. They decide over the order of sums, and the workers over the
        dropout masks, which is why its figures name them. Micro-batches stay in, whose masks are drawn one after
        another, and compiled layers, which round otherwise. Layers that are computed again give the very same bits.
        """
        tree = self.model_dump(mode="json")
        for place in ("name", "dataset", "features", "embed", "tracking"):
            del tree[place]
        for setting in ("checkpoint_every_steps", "checkpoints_kept", "activation_checkpointing"):
            del tree["training"][setting]
        for setting in ("false_negatives", "reference_negatives", "memory_bank"):
            if tree["training"][setting] == TrainingSection.model_fields[setting].default:
                del tree["training"][setting]  # as before there was another way
        del tree["scaling"]
        del tree["tower"]["readers"]
        if self.model.tower_seed is None:
            del tree["model"]["tower_seed"]
        if not self.tower.online:
            del tree["tower"]  # as before there was another way
        return recipe_hash(tree, dataset_hash, feature_key)
