"""Mutation proof: plants one mistake at a time in a copy of the sources and shows the test that catches it.

python tests/mutations.py [--only TEXT] [--list]

A mistake is a text of one file that is replaced by another; one whose text is no longer there exactly once is stale and
has to be brought up to date. The tests run without the shared data: what they prove a bare clone proves. Exit code 1
if a mistake survives, is stale, or only breaks what it touches instead of failing an assertion.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("infra", "pipelines", "training", "tuning", "tests", "pyproject.toml")

EQUATIONS = "tests/training/model/test_equations.py"
DISTRIBUTED = "tests/training/test_distributed.py"
REGIONS = "tests/training/model/test_regions.py"
METRICS = "tests/training/test_metrics.py"
FEED = "tests/training/test_feed.py"
FLOPS = "tests/training/test_flops.py"
METERS = "tests/training/test_meters.py"
GRADIENTS = "tests/training/test_gradients.py"
RESUMED_BANK = "tests/training/test_negatives.py::test_a_run_goes_on_with_its_bank_on_any_number_of_workers"
DRAIN = "tests/training/test_drain.py"
CHECKPOINTS = "tests/training/test_checkpoints.py"
RESUME = "tests/training/test_resume.py"
ATTEMPTS = "tests/training/test_attempts.py"
LOSSES = "tests/training/test_losses.py"
BANK = "tests/training/test_bank.py"
ANSWERS = "tests/training/test_answers.py"
PRECISION = "tests/training/test_precision.py"
STORED = "tests/training/test_stored.py"
LEARNING_TOWERS = "tests/training/test_towers.py"
AUGMENT = "tests/training/test_augment.py"
READER = "tests/training/test_reader.py"
TOWERS = "tests/training/model/test_vision.py"
SPRC = "tests/training/model/test_sprc.py"
JUDGED = "tests/tuning/test_judged.py"
ENGINE = "tests/pipelines/retrieval/test_engine.py"
ASKING = "tests/pipelines/annotators/chat/test_annotator.py"
CANARY = "tests/pipelines/annotators/chat/test_canary.py"
CHAT_CLIENT = "tests/pipelines/annotators/chat/test_client.py"
SEARCH = "tests/pipelines/retrieval/test_search.py"
RANKS = "tests/training/test_rank_metrics.py"
DIFFERENCES = "tests/training/test_significance.py"
ORDERINGS = "tests/tuning/reproduce/test_orderings.py"
REPRODUCED = "tests/tuning/reproduce/test_figures.py"
COMPETING = "tests/pipelines/world/test_competing.py"

ADAFOCAL = "training/model/adafocal.py"
CAAM = "training/model/caam.py"
QFORMER = "training/model/qformer.py"
NAMES = "training/model/convert/names.py"
VISION = "training/model/vision.py"


@dataclass(frozen=True)
class Mutation:
    """A mistake: in `file` the text `old`, which is there exactly once, becomes `new`; `tests` have to notice."""

    mistake: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (EQUATIONS,)


IDENTITY = "    tower.post_layernorm = nn.Identity()"


def every_eps(norm: str, eps: float) -> str:
    """Lines that give one LayerNorm of every block of the ViT another eps."""
    return f"\n    for block in tower.encoder.layers:\n        block.{norm}.eps = {eps}"


MUTATIONS = (
    # The bias
    Mutation(
        "bias before and after the scaling swapped",
        CAAM,
        'if config.bias_scale == "paper":',
        'if config.bias_scale != "paper":',
    ),
    Mutation(
        "class token biased",
        "training/model/regions.py",
        "    return torch.cat([torch.zeros(1), mask.flatten()])",
        "    return torch.cat([mask.max().view(1), mask.flatten()])",
    ),
    Mutation(
        "bias in the CAAM pass",
        CAAM,
        'fusion(self.probe_tokens, text, image, read="queries")',
        "fusion(self.probe_tokens, text, image, "
        'attention_bias(patch_mask.new_ones(len(patch_mask), 1), patch_mask, self.config), "queries")',
    ),
    Mutation(
        "bias in the target pass",
        ADAFOCAL,
        'image_memory(tokens, self.vision_norm), read="queries")',
        "image_memory(tokens, self.vision_norm), "
        '(torch.arange(tokens.shape[1]) > 4).to(tokens.dtype)[None, None, None], "queries")',
    ),
    Mutation(
        "bias in the first cross-attention alone",
        QFORMER,
        "rows = layer(rows, layout, image, bias, ",
        "rows = layer(rows, layout, image, bias if index == 0 else None, ",
    ),
    Mutation(
        "a missing box of a mixed batch taken for the whole image",
        CAAM,
        "bias = beta[:, None, :, None] * patch_mask",
        "patch_mask = torch.where(patch_mask.any(1, keepdim=True), patch_mask, "
        "(torch.arange(patch_mask.shape[1]) > 0).to(patch_mask.dtype))\n"
        "    bias = beta[:, None, :, None] * patch_mask",
    ),
    Mutation(
        "CAAM runs without any box",
        ADAFOCAL,
        "if not (bool(patch_mask.any()) if modulate is None else modulate):",
        "if modulate is not None and not modulate:",
    ),
    Mutation(
        "vector β averaged over the queries",
        CAAM,
        "bias = beta[:, None, :, None] * patch_mask",
        "bias = beta.mean(-1, keepdim=True)[:, None, :, None] * patch_mask",
    ),
    Mutation(
        "patches cut at the box's lower right edge",
        "training/model/regions.py",
        "right, bottom = (min(math.ceil(v / patch_size), grid) for v in box[2:])",
        "right, bottom = (min(math.floor(v / patch_size), grid) for v in box[2:])",
        (EQUATIONS, REGIONS),
    ),
    Mutation(
        "moved boxes rounded instead of truncated",
        "training/model/regions.py",
        "return float(int(x1)), float(int(y1)), float(int(x2)), float(int(y2))",
        "return float(round(x1)), float(round(y1)), float(round(x2)), float(round(y2))",
        (REGIONS,),
    ),
    # The contextual reasoning module
    Mutation("CRM pre-norm", CAAM, "batch_first=True", "batch_first=True, norm_first=True"),
    Mutation("CRM with GELU", CAAM, "batch_first=True", 'batch_first=True, activation="gelu"'),
    Mutation("CRM reads a probe instead of [CLS]", CAAM, "probes], dim=1))[:, 0]", "probes], dim=1))[:, 1]"),
    Mutation(
        "no softplus",
        CAAM,
        "return self.scale * F.softplus(self.output_head(pooled))",
        "return self.output_head(pooled)",
    ),
    Mutation(
        "β without its scale",
        CAAM,
        "return self.scale * F.softplus",
        "return F.softplus",
        ("tests/training/model/test_adafocal.py",),
    ),
    # LayerNorms
    Mutation(
        "eps of the ViT before the attention", VISION, IDENTITY, IDENTITY + every_eps("layer_norm1", 1e-5)
    ),
    Mutation("eps of the ViT before the MLP", VISION, IDENTITY, IDENTITY + every_eps("layer_norm2", 1e-5)),
    Mutation(
        "eps of CLIP's ViT before its blocks",
        VISION,
        "self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)",
        "self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=1e-6)",
        (TOWERS,),
    ),
    Mutation(
        "eps of CLIP's blocks",
        VISION,
        "        whole = CLIPVisionModel(config)",
        "        config.layer_norm_eps = 1e-6\n        whole = CLIPVisionModel(config)",
        (TOWERS,),
    ),
    Mutation(
        "eps behind the ViT",
        "training/model/config.py",
        "vision_norm_eps: float = 1e-5",
        "vision_norm_eps: float = 1e-6",
    ),
    Mutation(
        "eps of the Q-Former's embeddings",
        QFORMER,
        "self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)",
        "self.layernorm = nn.LayerNorm(config.hidden_size, eps=1e-6)",
    ),
    *(
        Mutation(
            f"eps of the Q-Former behind its {block}",
            QFORMER,
            made,
            f"{made}\n        {name}.LayerNorm.eps = 1e-6",
        )
        for block, name, made in (
            (
                "self-attention",
                "self.output",
                "self.attention = _SelfProjections(config, config.hidden_size)\n"
                "        self.output = _Residual(config, config.hidden_size)",
            ),
            (
                "cross-attention",
                "self.output",
                "self.attention = _CrossProjections(config, config.encoder_hidden_size)\n"
                "        self.output = _Residual(config, config.hidden_size)",
            ),
            ("text feed-forward", "self.output", "self.output = _Residual(config, config.intermediate_size)"),
            (
                "query feed-forward",
                "self.output_query",
                "self.output_query = _Residual(config, config.intermediate_size)",
            ),
        )
    ),
    *(
        Mutation(
            f"eps of the CRM behind its {block}",
            CAAM,
            "layer, config.crm_layers, enable_nested_tensor=False\n            )",
            "layer, config.crm_layers, enable_nested_tensor=False\n            )\n"
            f"            for made in self.transformer_encoder.layers:\n                made.{name}.eps = 1e-6",
        )
        for block, name in (("self-attention", "norm1"), ("feed-forward", "norm2"))
    ),
    Mutation(
        "a second LayerNorm behind the ViT",
        VISION,
        IDENTITY,
        "    tower.post_layernorm = nn.LayerNorm(config.hidden_size, elementwise_affine=False)",
    ),
    # Tower
    Mutation(
        "q_bias dropped in the conversion",
        NAMES,
        "joined = torch.cat([query, torch.zeros_like(query), value])",
        "joined = torch.cat([torch.zeros_like(query), torch.zeros_like(query), value])",
    ),
    Mutation(
        "v_bias in the keys' place",
        NAMES,
        "joined = torch.cat([query, torch.zeros_like(query), value])",
        "joined = torch.cat([query, value, torch.zeros_like(query)])",
    ),
    Mutation(
        "tanh GELU in the ViT",
        VISION,
        "    tower = Blip2VisionModel(config)",
        '    config.hidden_act = "gelu_pytorch_tanh"\n    tower = Blip2VisionModel(config)',
    ),
    # Q-Former
    Mutation(
        "tanh GELU in the Q-Former",
        QFORMER,
        "return F.gelu(self.dense(states))",
        'return F.gelu(self.dense(states), approximate="tanh")',
    ),
    Mutation(
        "text positions offset",
        QFORMER,
        "positions = torch.arange(input_ids.shape[1], device=input_ids.device)",
        "positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)",
    ),
    Mutation(
        "text mask ignored",
        "training/model/packing.py",
        "mask = torch.where(everything, 0.0, PADDED_KEY)",
        "mask = torch.where(everything, 0.0, 0.0)",
    ),
    Mutation(
        "queries take the text's feed-forward",
        QFORMER,
        "self.output_query(self.intermediate_query(rows), rows)",
        "self.output(self.intermediate(rows), rows)",
    ),
    Mutation(
        "value bias left out of the cross-attention",
        QFORMER,
        "value_shift = (self.value.weight @ shift + self.value.bias)",
        "value_shift = (self.value.weight @ shift)",
    ),
    Mutation(
        "shift of the LayerNorm behind the ViT left out of the values",
        QFORMER,
        "value_shift = (self.value.weight @ shift + self.value.bias)",
        "value_shift = (self.value.bias + 0 * shift.sum())",
    ),
    Mutation(
        "query vector read at the second text token",
        "training/model/packing.py",
        "first_text = batch * queries + lengths.cumsum(0) - lengths",
        "first_text = batch * queries + lengths.cumsum(0) - lengths + 1",
    ),
    # Scores and loss
    Mutation(
        "query vector not of unit length",
        ADAFOCAL,
        "embedding = F.normalize(self.text_projection(hidden), dim=-1)",
        "embedding = self.text_projection(hidden)",
    ),
    Mutation(
        "target vectors through the text projection",
        ADAFOCAL,
        "F.normalize(self.vision_projection(hidden), dim=-1)",
        "F.normalize(self.text_projection(hidden), dim=-1)",
    ),
    Mutation(
        "mean instead of max over the target tokens",
        "training/scoring.py",
        "per_target).max(dim=-1).values)",
        "per_target).mean(dim=-1))",
    ),
    Mutation(
        "temperature multiplied",
        "training/losses.py",
        "    logits = similarity / temperature\n",
        "    logits = similarity * temperature\n",
    ),
    Mutation(
        "loss in both directions",
        "training/losses.py",
        "    return F.cross_entropy(logits, labels)",
        "    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2",
    ),
    # Training on several workers
    Mutation(
        "gather differentiable in its own block only",
        "training/distributed.py",
        "        dist.all_reduce(total)\n",
        "",
        (DISTRIBUTED,),
    ),
    Mutation(
        "gradients averaged over the workers once too often",
        "training/task.py",
        "loss_sum * (world_size / batch.total)",
        "loss_sum * (1 / batch.total)",
        (DISTRIBUTED,),
    ),
    Mutation(
        "repeated targets mixed up",
        "training/task.py",
        "targets = distinct[batch.target_index]",
        "targets = distinct[batch.target_index.sort().values]",
        (DISTRIBUTED,),
    ),
    # Negatives
    Mutation(
        "a query's own target left out with the false negatives",
        "training/losses.py",
        "found.scatter(1, labels[:, None], value=False)",
        "found",
        (LOSSES,),
    ),
    Mutation(
        "further right answers kept as negatives",
        "training/losses.py",
        "for one in right.unbind(1):",
        "for one in right[:, :1].unbind(1):",
        (LOSSES,),
    ),
    Mutation(
        "the mask of false negatives forgotten",
        "training/losses.py",
        "return info_nce(scores, context.temperature, context.labels, context.excluded)",
        "return info_nce(scores, context.temperature, context.labels)",
        (LOSSES,),
    ),
    Mutation(
        "a memory bank that is differentiated",
        "training/bank.py",
        "self._waiting.append((targets.detach(), images))",
        "self._waiting.append((targets, images))",
        (BANK,),
    ),
    Mutation(
        "a memory bank that a resumed worker does not take over",
        "training/engine.py",
        "            self.bank.broadcast()",
        "            pass",
        (RESUMED_BANK,),
    ),
    Mutation(
        "the answers of another worker's queries",
        "training/batches.py",
        "right[start:end]",
        "right[: end - start]",
        (ANSWERS,),
    ),
    # From pixels
    Mutation(
        "a tower that learns without a gradient",
        "training/model/vision.py",
        "torch.set_grad_enabled(trained and torch.is_grad_enabled())",
        "torch.set_grad_enabled(False)",
        (LEARNING_TOWERS,),
    ),
    Mutation(
        "the first blocks learn instead of the last",
        "training/towers.py",
        "blocks[-section.layers :]",
        "blocks[: section.layers]",
        (LEARNING_TOWERS,),
    ),
    Mutation(
        "adapters taken out without what they learned",
        "training/towers.py",
        "            module.merge()\n",
        "",
        (LEARNING_TOWERS,),
    ),
    Mutation(
        "the box left where it was on the cut image",
        "training/augment.py",
        "region = (region[0] - x1, region[1] - y1, region[2] - x1, region[3] - y1)",
        "region = region",
        (AUGMENT,),
    ),
    Mutation(
        "a mask not mirrored with its image",
        "training/augment.py",
        "np.ascontiguousarray(region[:, ::-1])",
        "region",
        (AUGMENT,),
    ),
    Mutation(
        "a cut that may go through the region",
        "training/augment.py",
        "_between(max(0, x2 - length), min(x1, width - length), across)",
        "_between(0, width - length, across)",
        (AUGMENT,),
    ),
    Mutation(
        "draws that every step repeats",
        "training/reader.py",
        "PCG64([self.plan.seed, step, role, number])",
        "PCG64([self.plan.seed, role, number])",
        (READER,),
    ),
    Mutation(
        "draws by the place in the worker's part",
        "training/reader.py",
        "self._generator(step, REFERENCE, part.start + place)",
        "self._generator(step, REFERENCE, place)",
        (READER,),
    ),
    # Leaving a training
    Mutation(
        "each worker leaves when it hears of it itself",
        "training/drain.py",
        "        agreed = self._agreed()\n",
        "        self._agreed()\n        agreed = self.own\n",
        (DRAIN,),
    ),
    Mutation(
        "the best weights of a course that was given up",
        "training/checkpoints.py",
        "        if best > step:\n",
        "        if best > step + 1_000:\n",
        (CHECKPOINTS, RESUME),
    ),
    Mutation(
        "the best weights pruned although training may go on from before them",
        "training/checkpoints.py",
        "        oldest = done[-self.kept :][0] if done else 0\n",
        "        oldest = done[-1] if done else 0\n",
        (CHECKPOINTS,),
    ),
    Mutation(
        "a checkpoint that knows of best weights which are not there",
        "training/checkpoints.py",
        "        self._write_best()\n        _write(url, data)\n",
        "        _write(url, data)\n",
        (CHECKPOINTS,),
    ),
    Mutation(
        "losses counted over the whole training",
        "training/attempts.py",
        "        self.count = 1 if step > self.step else self.count + 1\n",
        "        self.count += 1\n",
        (ATTEMPTS,),
    ),
    Mutation(
        "a step that is left behind unsaved",
        "training/loop.py",
        "        if wish < Wish.GIVE_UP:\n            self.save()\n",
        "        if wish < Wish.GIVE_UP:\n",
        ("tests/training/test_loop.py",),
    ),
    # What is told of a step
    Mutation(
        "a dev measurement counted as time of steps",
        "training/meters.py",
        "- began - (paused - paused_before)",
        "- began",
        (METERS,),
    ),
    Mutation(
        "the workers' maxima lost on their way",
        "training/meters.py",
        "dist.all_reduce(most, dist.ReduceOp.MAX, async_op=True)",
        "dist.all_reduce(most.zero_(), dist.ReduceOp.MAX, async_op=True)",
        (METERS,),
    ),
    Mutation(
        "frozen tokens counted as if they had a gradient",
        "training/flops.py",
        "return 3 * self.both + 2 * self.one",
        "return 3 * self.both + 3 * self.one",
        (FLOPS,),
    ),
    Mutation(
        "a second forward that draws other dropout masks",
        "training/gradients.py",
        "preserve_rng_state=True",
        "preserve_rng_state=False",
        (GRADIENTS,),
    ),
    Mutation(
        "a micro-batch decides by its own queries whether the CAAM runs",
        "training/gradients.py",
        "        batch.modulate,  # of the whole",
        "        bool(batch.patch_mask[start:end].any()),  # of the whole",
        (GRADIENTS,),
    ),
    Mutation(
        "micro-batches weighed alike whatever they hold",
        "training/engine.py",
        "output.objective * (batch.total / total)",
        "output.objective",
        (GRADIENTS,),
    ),
    Mutation(
        "only the last micro-batch reaches the optimizer",
        "training/engine.py",
        "set_gradient_accumulation_boundary(last)",
        "set_gradient_accumulation_boundary(True)",
        (GRADIENTS,),
    ),
    Mutation(
        "a step that overflowed moves the average of the weights",
        "training/engine.py",
        "        else:\n            for average, flat",
        "        if True:\n            for average, flat",
        (PRECISION,),
    ),
    Mutation(
        "a resumed float16 training starts with a fresh loss scale",
        "training/engine.py",
        "self.scale.restore(found.noticed[LOSS_SCALE])",
        "pass",
        (PRECISION,),
    ),
    Mutation(
        "each worker decides by its own part whether the CAAM runs",
        "training/feed.py",
        "bool(queries.patch_masks[rows].any())",
        "bool(queries.patch_masks[own].any())",
        (FEED,),
    ),
    # SPRC
    Mutation(
        "SPRC's second pass sees the image",
        "training/model/sprc.py",
        'hidden = self.qformer(fused, text, None, read="text_cls")',
        'hidden = self.qformer(fused, text, image, read="text_cls")',
        (SPRC,),
    ),
    Mutation(
        "SPRC's prompts pulled by the alignment",
        "training/losses.py",
        "F.mse_loss(fused, prompts.detach())",
        "F.mse_loss(fused, prompts)",
        (SPRC,),
    ),
    Mutation(
        "prompts of a pass without image through the queries' feed-forward",
        QFORMER,
        'if read == "text_cls" or image is None:',
        "if image is None and wanted is None:\n"
        "            first, rest = attended.split([queries, len(attended) - queries])\n"
        "            first = self.output_query(self.intermediate_query(first), first)\n"
        "            return torch.cat([first, self._feed_text(rest)])\n"
        '        if read == "text_cls" or image is None:',
        (SPRC,),
    ),
    # Evaluation
    Mutation(
        "reference kept in the ranking",
        "training/metrics.py",
        " - int(reference >= 0 and ahead[reference])",
        "",
        (METRICS,),
    ),
    Mutation(
        "reference kept among the shown candidates",
        "pipelines/retrieval/engine.py",
        "kept = order[order != removed][:top_k]",
        "kept = order[:top_k]",
        (ENGINE,),
    ),
    Mutation(
        "dropout left on in the evaluation",
        "pipelines/retrieval/engine.py",
        "self.model = model.eval().to(self.device)",
        "self.model = model.train().to(self.device)",
        (ENGINE,),
    ),
    Mutation(
        "search: only the K best by single precision are scored again",
        "pipelines/retrieval/search.py",
        "_reached(screened, k).double() - 2 * error",
        "_reached(screened, k).double()",
        (SEARCH,),
    ),
    Mutation(
        "search: the rounding of double precision taken as it comes",
        "pipelines/retrieval/search.py",
        "(low != high).nonzero()",
        "(low > high).nonzero()",
        (SEARCH,),
    ),
    Mutation(
        "search: fewer bits than single precision relied on",
        "pipelines/retrieval/search.py",
        'if torch.get_float32_matmul_precision() == "highest"',
        "if torch.get_float32_matmul_precision()",
        (SEARCH,),
    ),
    Mutation(
        "search: ties go to any column",
        "pipelines/retrieval/search.py",
        "np.lexsort((all_columns, -all_scores, all_rows))",
        "np.lexsort((-all_columns, -all_scores, all_rows))",
        (SEARCH,),
    ),
    Mutation(
        "average precision divided by all targets however few places there are",
        "training/rank_metrics.py",
        "/ min(k, len(array))",
        "/ len(array)",
        (RANKS,),
    ),
    Mutation(
        "the reference ranked within the query's own group",
        "training/rank_metrics.py",
        "inside[column_of[removed]] = False",
        "inside[column_of[removed]] = among_ids is not None",
        (RANKS,),
    ),
    Mutation(
        "significance: queries flipped as if each were evidence of its own",
        "training/significance.py",
        "labels = _codes(list(zip(groups.tolist(), clusters, strict=True)))",
        "labels = np.arange(len(groups))",
        (DIFFERENCES,),
    ),
    Mutation(
        "significance: seeds taken as if there could be no others",
        "training/significance.py",
        "shares = [generator.multinomial(len(s), np.full(len(s), 1 / len(s)), n) / len(s) for s in (own, other)]",
        "shares = [np.full((n, len(s)), 1 / len(s)) for s in (own, other)]",
        (DIFFERENCES,),
    ),
    Mutation(
        "reproduce: an ordering that is significantly reversed passes",
        "tuning/reproduce/orderings.py",
        "if differs and found.value < 0:",
        "if differs and found.value < -100:",
        (ORDERINGS,),
    ),
    Mutation(
        "reproduce: significance not corrected for the number of comparisons",
        "tuning/reproduce/orderings.py",
        "significant = found.value > 0 and found.shown(corrected)",
        "significant = found.value > 0 and found.shown()",
        (ORDERINGS,),
    ),
    Mutation(
        "reproduce: means over queries instead of domains",
        "tuning/reproduce/figures.py",
        "return np.mean([hits[:, domains == domain].mean(axis=1) for domain in np.unique(domains)], axis=0)",
        "return hits.mean(axis=1) + 0 * len(domains)",
        (REPRODUCED,),
    ),
    Mutation(
        "reproduce: a seed that lacks a left-out domain counts",
        "tuning/reproduce/figures.py",
        "if all(trial in tables for trial in wanted):",
        "if any(trial in tables for trial in wanted) and (wanted := [t for t in wanted if t in tables]):",
        (REPRODUCED,),
    ),
    Mutation(
        "world: texts name a place that stays",
        "pipelines/world/texts.py",
        'FRAMES["kept" if kept else "changes" if stated else "place"]',
        'FRAMES["changes" if stated else "place"]',
        (COMPETING,),
    ),
    Mutation(
        "world: objects of one palette are seen at the same places",
        "pipelines/world/scenes.py",
        "order[((index - first) * count + i) % len(order)]",
        "order[i % len(order)]",
        (COMPETING,),
    ),
    Mutation(
        "int8: one scale for an image instead of one for each token",
        "training/stored.py",
        "scales = tokens.abs().amax(dim=-1, keepdim=True) / LARGEST",
        "scales = tokens.abs().amax(dim=(1, 2), keepdim=True).expand(-1, tokens.shape[1], -1).contiguous() / LARGEST",
        (STORED,),
    ),
    Mutation(
        "int8: values cut off instead of rounded",
        "training/stored.py",
        ".round().clamp(",
        ".trunc().clamp(",
        (STORED,),
    ),
    Mutation(
        "a store's key does not see the tower's precision",
        "training/features.py",
        'if precision != "float32":',
        'if precision == "none":',
        ("tests/training/test_features.py",),
    ),
    Mutation(
        "tokens that are no numbers are stored",
        "pipelines/encoding.py",
        "return int(wrong[0]) if len(wrong) else None",
        "return None",
        ("tests/pipelines/test_encoding.py",),
    ),
    # Sweeps
    Mutation(
        "a trial that is nowhere better beats its equal",
        "tuning/pareto.py",
        "return min(gains) >= 0 < max(gains)",
        "return min(gains) >= 0",
        (JUDGED,),
    ),
    Mutation(
        "more of a latency is better",
        "tuning/config.py",
        "return -1 if metric in AFTERWARDS else 1",
        "return 1",
        (JUDGED,),
    ),
    Mutation(
        "draws depend on how many there are",
        "tuning/space.py",
        "generator = np.random.default_rng([seed, number])",
        "generator = np.random.default_rng([seed, number, count])",
        ("tests/tuning/test_space.py",),
    ),
    Mutation(
        "a number from logarithmic draws is drawn evenly",
        "tuning/space.py",
        "drawn = math.exp(generator.uniform(math.log(dimension.low), math.log(dimension.high)))",
        "drawn = generator.uniform(dimension.low, dimension.high)",
        ("tests/tuning/test_space.py",),
    ),
    Mutation(
        "the band of a curve is the whole interval",
        "tuning/report.py",
        "widths = [(m.high - m.low) / 2",
        "widths = [(m.high - m.low)",
        ("tests/tuning/test_report.py",),
    ),
    # Asking a chat model
    Mutation(
        "both photos of a pair sent in the wrong order",
        "pipelines/annotators/chat/prompts.py",
        """        picture_of(pair.reference),
        "Wanted photograph:",
        picture_of(pair.target),""",
        """        picture_of(pair.target),
        "Wanted photograph:",
        picture_of(pair.reference),""",
        (ASKING,),
    ),
    Mutation(
        "the canary content with an answer that never changes",
        "pipelines/annotators/chat/canary.py",
        "for order in ((0, 1), (1, 0)):",
        "for order in ((0, 1), (0, 1)):",
        (CANARY,),
    ),
    Mutation(
        "kept answers addressed without the photos",
        "pipelines/annotators/chat/prompts.py",
        'f"sha256:{p.sha256}"',
        '"sha256:"',
        (ASKING,),
    ),
    Mutation(
        "the budget forgets the parts that are done",
        "pipelines/annotators/chat/annotator.py",
        "total = sum(self._used.values(), self._before.copy())",
        "total = sum(self._used.values(), Counter[str]())",
        (ASKING,),
    ),
    Mutation(
        "what a killed run paid for is not counted",
        "pipelines/annotators/chat/annotator.py",
        "if known.paid_by == self.setting.benchmark:",
        "if not known.paid_by:",
        (ASKING,),
    ),
    Mutation(
        "Retry-After heard by one request alone",
        "pipelines/annotators/chat/client.py",
        "self._not_before = max(self._not_before, time.monotonic() + wait_s)",
        "self._not_before = 0.0",
        (CHAT_CLIENT,),
    ),
    Mutation(
        "texts of other parts may be repeated",
        "pipelines/annotate.py",
        "done.texts | beside",
        "beside",
        ("tests/pipelines/test_build_chat.py::test_the_same_text_for_all_pairs_is_kept_once_over_all_parts",),
    ),
    Mutation(
        "a second text not held against the gates",
        "pipelines/gating.py",
        "still = _judge(again, second, rules, seen)",
        "still = _judge([], second, rules, seen)",
        ("tests/pipelines/test_gating.py",),
    ),
    Mutation(
        "a detector's box on the photo as it is decoded, not on the whole one",
        "pipelines/annotators/grounder.py",
        "for place, score, size in zip(boxes, scores.cpu().tolist(), sizes, strict=True)",
        "for place, score, size in zip(boxes, scores.cpu().tolist(), [p.size for p in photos], strict=True)",
        ("tests/pipelines/annotators/test_grounder.py",),
    ),
    Mutation(
        "what people decided on another text counts for today's",
        "pipelines/annotators/people/settle.py",
        'if task["text"] == text and (text is None or task["box"] == box):',
        "if True:",
        ("tests/pipelines/annotators/people/test_agreement.py",),
    ),
    Mutation(
        "an update takes people's texts for the annotator's",
        "pipelines/earlier.py",
        'quadruples="quadruples" if before.people is None else ANNOTATED,',
        "",
        ("tests/pipelines/annotators/people/test_review_chat.py",),
    ),
    Mutation(
        "a pending pair is kept where it should be left out",
        "pipelines/reviewing.py",
        'if options.pending == "leave_out":',
        "if False:",
        ("tests/pipelines/annotators/people/test_review.py",),
    ),
    Mutation(
        "a person's box read on a photo of width by width",
        "pipelines/annotators/people/reading.py",
        "max(0, round(top * h / 100))",
        "max(0, round(top * w / 100))",
        ("tests/pipelines/annotators/people/test_reading.py",),
    ),
)


def apply(mutation: Mutation, root: Path) -> str:
    """The file's text with the mistake in it.

    Raises:
        ValueError: the text to replace is not there exactly once, or nothing would change.
    """
    text = (root / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1 or mutation.old == mutation.new:
        raise ValueError(
            f"{mutation.mistake!r} is stale: its text is {count} times in {mutation.file}, has to be there once; bring "
            "the snippet in tests/mutations.py up to date"
        )
    return text.replace(mutation.old, mutation.new)


class Failure(NamedTuple):
    """A test that failed, and the type of what it raised."""

    test: str
    kind: str

    @property
    def judged(self) -> bool:
        """An assertion, not something that broke on the way to it."""
        return self.kind in ("AssertionError", "Failed")


class Outcome(NamedTuple):
    """Of one pytest run."""

    exit_code: int
    failures: list[Failure]
    seconds: float


def run_tests(copy: Path, tests: tuple[str, ...], folder: Path) -> Outcome:
    """Run tests of the copy in a forked process, so that torch is imported once for all of them."""
    began = time.perf_counter()
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(copy, tests, folder))
    process.start()
    process.join()
    if not report.is_file():
        return Outcome(process.exitcode or 1, [], time.perf_counter() - began)
    found = json.loads(report.read_text())
    return Outcome(
        found["exit_code"], [Failure(*pair) for pair in found["failures"]], time.perf_counter() - began
    )


def _child(copy: Path, tests: tuple[str, ...], folder: Path) -> None:
    import pytest

    class Recorder:
        failures: list[tuple[str, str]] = []  # noqa: RUF012  # one run per process

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
            result = yield
            if result.failed and call.excinfo is not None:
                self.failures.append((item.nodeid, call.excinfo.typename))
            return result

    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(copy)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy))
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "OACIR_SHARED_DIR": str(folder / "none")}
    os.environ.pop("OACIR_GOLDEN_DIR", None)
    recorder = Recorder()
    code = pytest.main(
        ["-q", "--maxfail=3", "-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[recorder]
    )
    content = {"exit_code": int(code), "failures": recorder.failures}
    (folder / "report.json").write_text(json.dumps(content))


def verdict(outcome: Outcome) -> str:
    """The table's last column; "survived" and "broke" are failures of the proof."""
    judged = [failure for failure in outcome.failures if failure.judged]
    if judged:
        return judged[0].test.split("/")[-1]
    if outcome.exit_code == 0:
        return "SURVIVED"
    return f"BROKE: {outcome.failures[0].kind if outcome.failures else 'no test ran'}"


def main() -> int:
    """Plant every mistake in turn; 0 if each is caught by an assertion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", metavar="TEXT", help="mistakes whose name holds TEXT")
    parser.add_argument("--list", action="store_true", help="name the mistakes and stop")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in m.mistake]
    if options.list:
        sys.stdout.writelines(f"{m.mistake} ({m.file})\n" for m in chosen)
        return 0
    # once for all forks; nothing of the project, which they import from the copy
    import pytest  # noqa: F401
    import torch
    from transformers import Blip2VisionModel, CLIPVisionModel  # noqa: F401

    torch.set_num_threads(1)
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder, copy = Path(name), Path(name) / "copy"
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        everything = tuple(dict.fromkeys(test for m in chosen for test in m.tests))
        clean = run_tests(copy, everything, folder)
        if clean.exit_code != 0:
            sys.stdout.write((folder / "log.txt").read_text()[-3000:])
            sys.stdout.write("the tests fail without any mistake: nothing can be shown\n")
            return 1
        sys.stdout.write(
            f"| mistake | caught by |\n|---|---|\n| none ({clean.seconds:.0f} s) | nothing, as it has to be |\n"
        )
        for mutation in chosen:
            path = copy / mutation.file
            original = path.read_text()
            try:
                path.write_text(apply(mutation, copy))
            except ValueError as stale:
                found, survived = f"STALE: {stale}", True
            else:
                outcome = run_tests(copy, mutation.tests, folder)
                found = verdict(outcome)
                survived = found.startswith(("SURVIVED", "BROKE"))
            path.write_text(original)
            survivors += survived
            sys.stdout.write(f"| {mutation.mistake} | {found} |\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - survivors} of {len(chosen)} mistakes are caught\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
