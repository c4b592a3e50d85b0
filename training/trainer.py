"""The driver of a training run: what goes in, Ray Train around the loop, what comes out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import recipe_hash
from infra.base.errors import OacirError
from infra.base.hold import held
from infra.base.progress import Progress, duration
from infra.base.tracking import tracking_uri
from infra.base.versions import Draft, FileEntry, Version, content_hash, file_entry, resolve, rows_hash, start
from training import card, checkpoints
from training.anchors import anchors_of, region_counts
from training.answers import require_room, with_negatives
from training.attempts import RAY_FOLDER, Attendants, Watch, run_to_end
from training.bank import bank_bytes
from training.batches import Sampler
from training.config import TrainRecipe
from training.data import (
    batch_groups,
    batch_instances,
    image_sizes,
    load_queries,
    read_quadruples,
    training_texts,
)
from training.job import PROFILE_FOLDER, TRAINED, Board, Job
from training.listening import MARK, Listener
from training.logged import Log, logged, mending
from training.memory import NUMBER, predicted
from training.room import require_workers_fit

if TYPE_CHECKING:
    from training.features import FeatureStore
    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor

QUERIES_NAMED = 8
"""Queries of a batch that a complaint names, at most."""
DIVERGED = "diverged.json"
"""File of a run whose training diverged: the queries of the batch."""
UNTIMED = (
    "step", "epoch", "loss", "temperature", "beta_mean", "beta_std", "learning_rate", "gradient_norm",
    "loss_scale", "skipped",
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Everything a run is made of."""

    dataset: Version
    stores: list[FeatureStore]
    """Of the images, and of the references' views where the model sees those; none where training reads pixels."""
    source: str
    """What the tokens depend on beside the images: the feature key, or tower and preprocessing."""
    model: AdaFocalModel
    processor: AdaFocalProcessor
    sampler: Sampler
    total_steps: int
    queries: int
    regions: dict[str, int]
    """Training queries by what marks their object."""

    @property
    def versions(self) -> dict[str, Version]:
        """Role → version that the run is made from."""
        stores = zip(("features", "views"), self.stores, strict=False)
        return {"dataset": self.dataset, **{role: store.version for role, store in stores}}

    @property
    def parents(self) -> dict[str, str]:
        """Role → content hash of what the run is made from."""
        return {role: version.manifest.content_hash for role, version in self.versions.items()}


def train(
    recipe: TrainRecipe, context: Context, listener: Listener | None = None, origin: str | None = None
) -> Outcome:
    """Train the recipe's model on its benchmark; finished runs are left alone, interrupted ones go on.

    Args:
        recipe: what is trained.
        context: where.
        listener: who follows the training and may end it.
        origin: URL of the run whose newest checkpoint this one begins with; then part of its key, with what
            `MARK` adds to it.

    Returns:
        where the run lies: `export/` (model and processor), `history.parquet` (a row per step), `dev.parquet`.

    Raises:
        OacirError: no such dataset, no features or stale ones, or training failed.
        StoppedError: the listener ended it.
        TerminatedError: a signal did.
    """
    began = time.monotonic()
    warning = recipe.model.warning()
    if warning and not context.dry_run:
        logging.getLogger(__name__).warning(warning)
    if recipe.training.compile and not recipe.scaling.use_gpu:
        from training.compiled import require_compiler

        require_compiler()  # here, where it is one line; a worker's complaint would be tried again
    inputs = _inputs(recipe, context)
    key = recipe.identity(inputs.dataset.manifest.content_hash, inputs.source)
    if origin is not None:
        key = recipe_hash({"origin": origin}, key)
    if recipe.tracking.profile_steps is not None and recipe.tracking.profile_from > inputs.total_steps:
        raise OacirError(
            f"tracking.profile_from {recipe.tracking.profile_from}: the training ends after step"
            f" {inputs.total_steps:,}, so nothing would be traced; set it lower"
        )
    if context.dry_run:
        return _plan(recipe, inputs, key)
    draft = start("runs", recipe.name, key, recipe, root=context.root, out=context.out)
    if draft.finished is None:
        with held(draft.url, "training") as hold:
            # it may have been finished while this one waited
            draft = start("runs", recipe.name, key, recipe, root=context.root, out=context.out)
            if draft.finished is None:
                return _trained(recipe, draft, inputs, Attendants(hold, listener), origin, began)
    figures = draft.finished.figures
    uri = tracking_uri(recipe.tracking.mlflow_uri)
    return Outcome(
        f"nothing to do: this recipe was trained on this data before ({figures['steps']:,} steps): {draft.url}",
        draft.url,
        figures,
        mending(Version(draft.url, draft.finished), uri),
    )


def _trained(
    recipe: TrainRecipe,
    draft: Draft,
    inputs: Inputs,
    attendants: Attendants,
    origin: str | None,
    began: float,
) -> Outcome:
    """Train in a run that is held, from wherever it was left."""
    if origin is not None and not checkpoints.complete_steps(draft.url):
        checkpoints.branch(origin.partition(MARK)[0], draft.url)
    with logged(recipe, draft, inputs.versions) as log:
        if attendants.listener is not None:
            attendants.listener.begins(draft.url, inputs.total_steps)
        costs, redone_from = _fit(recipe, draft, inputs, log, attendants)
        version = _commit(recipe, draft, inputs, costs, time.monotonic() - began)
        checkpoints.remove_all(draft.url)
        log.finished(version)
    figures = version.manifest.figures
    return Outcome(
        f"trained {figures['steps']:,} steps in {duration(time.monotonic() - began)}"
        + (f" (resumed at step {redone_from:,})" if redone_from else "")
        + f", loss {figures['loss']:.3f}: {draft.url}",
        draft.url,
        figures,
        (*_costs(figures["ms_per_step"]), *_held(figures["bytes_of_worker"]), *_traces(version), *log.line()),
    )


def _costs(per_step: Mapping[str, float]) -> tuple[str, ...]:
    if not per_step:
        return ()
    return ("a step costs " + ", ".join(f"{part} {ms:.0f} ms" for part, ms in per_step.items()),)


def _held(of_worker: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    """A line for each worker: what the training state took there."""
    lines = [
        f"worker {rank} held "
        + ", ".join(f"{kind} {count / 2**20:,.1f} MiB" for kind, count in kinds.items())
        for rank, kinds in enumerate(of_worker)
        if kinds
    ]
    return tuple(lines)


def _traces(version: Version) -> tuple[str, ...]:
    paths = [file.path for file in version.manifest.files if file.path.startswith(f"{PROFILE_FOLDER}/")]
    return tuple(f"trace for chrome://tracing or ui.perfetto.dev: {version.path(path)}" for path in paths)


def _inputs(recipe: TrainRecipe, context: Context) -> Inputs:
    from training.export import build_model, build_processor
    from training.features import processor_fingerprint
    from training.towers import prepare_tower

    dataset = resolve(context.root, "datasets", recipe.dataset, holding="quadruples")
    without = recipe.training.leave_out_domains
    quadruples = read_quadruples(dataset, "train", without)
    if len(quadruples) < recipe.scaling.workers:
        raise OacirError(
            f"{dataset.url}: {len(quadruples)} training quadruples for {recipe.scaling.workers} workers;"
            " build a larger benchmark or lower scaling.workers"
        )
    require_room(recipe.training, len(quadruples), dataset.url)
    model = build_model(recipe.model)
    processor = build_processor(
        recipe.model, model.config, lambda: training_texts(quadruples, recipe.model.text_entity)
    )
    tower_hash = model.tower_state_hash()
    stores: list[FeatureStore] = []
    if recipe.tower.online:
        source = recipe_hash({"tower": tower_hash, "processor": processor_fingerprint(processor)})
        prepare_tower(model, recipe.tower, recipe.training.seed)
    else:
        stores = list(_find_stores(recipe, context.root, dataset, tower_hash, processor))
        source = stores[0].key
    if recipe.training.select == "best_on_dev" and not len(read_quadruples(dataset, "dev", without)):
        raise OacirError(
            f"{dataset.url}: has no dev quadruples of the domains trained on; set training.select to last"
        )
    groups = batch_groups(quadruples, recipe.training.one_domain_per_batch)
    sampler = Sampler(
        groups,
        recipe.training.batch_size,
        recipe.training.seed,
        batch_instances(quadruples),
        recipe.training.queries_of_an_instance,
    )
    total = recipe.training.epochs * sampler.steps_per_epoch
    return Inputs(
        dataset=dataset,
        stores=stores,
        source=source,
        model=model,
        processor=processor,
        sampler=sampler,
        total_steps=min(total, recipe.training.steps or total),
        queries=len(quadruples),
        regions=region_counts(anchors_of(quadruples.to_pylist(), image_sizes(dataset)), processor),
    )


def _find_stores(
    recipe: TrainRecipe, root: str, dataset: Version, tower_hash: str, processor: AdaFocalProcessor
) -> Iterator[FeatureStore]:
    """The stores that the recipe's model reads, in the order of `stores.needed`."""
    from training.features import FeatureStore
    from training.stores import needed

    for contents in needed(dataset, processor):
        key = contents.feature_key(tower_hash, processor, recipe.embed.dtype, recipe.embed.precision)
        if contents.view == "full" and recipe.features is not None:
            store = FeatureStore.open(resolve(root, "features", recipe.features).url, key)
            contents.require(store)
            yield store
            continue
        found = contents.find(root, [key], dataset.manifest.name)
        if found is None:
            named = ", or set --features" if contents.view == "full" else ""
            why = contents.missing(root, [key], dataset)
            raise OacirError(f"{why}; run `oacir embed` with this recipe first{named}")
        yield found


def _plan(recipe: TrainRecipe, inputs: Inputs, key: str) -> Outcome:
    trained = sum(p.numel() for p in inputs.model.parameters() if p.requires_grad)
    workers, batch = recipe.scaling.workers, recipe.training.batch_size
    # without pixels the workers train on stored tokens and hold no tower
    skipped = () if recipe.tower.online else ("vision_model.",)
    others = [
        p for n, p in inputs.model.named_parameters() if not p.requires_grad and not n.startswith(skipped)
    ]
    frozen = sum(p.numel() for p in others)
    averaged = recipe.training.ema_decay is not None
    state = predicted(trained, frozen, recipe.scaling.zero_stage, workers, average=averaged)
    if recipe.training.memory_bank:
        state["bank"] = bank_bytes(recipe.training.memory_bank, inputs.model.target_shape)
    figures = {
        "key": key,
        "steps": inputs.total_steps,
        "quadruples": inputs.queries,
        "quadruples_seen": inputs.sampler.rows_seen(inputs.total_steps),
        "batch_size": batch,
        "batch_size_per_worker": -(-batch // workers),
        "queries_per_forward": min(recipe.training.micro_batch_size or batch, -(-batch // workers)),
        "workers": workers,
        "trained_parameters": trained,
        "state_bytes_per_worker": sum(state.values()),
        **{f"bytes_of_{kind}": count for kind, count in state.items()},
        "checkpoint_bytes": NUMBER * trained * (4 if averaged else 3),  # weights, two moments, average
        "features_bytes": sum(f.size_bytes for s in inputs.stores for f in s.version.manifest.files),
    }
    details = tuple(
        f"{name.replace('_', ' ')}: {value:,}" for name, value in figures.items() if name != "key"
    )
    warning = recipe.model.warning()
    warned = (f"warning: {warning}",) if warning else ()
    return Outcome(f"dry run: would train run {recipe.name}/{key}", None, figures, (*details, *warned))


def _fit(
    recipe: TrainRecipe, draft: Draft, inputs: Inputs, log: Log, attendants: Attendants
) -> tuple[dict[str, Any], int]:
    """Run the loop under Ray Train; figures of what it cost here, and the step it went on from."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from infra.base.ray_session import connect
    from training.devset import load_dev
    from training.online import streams
    from training.pixels import ImageSet, image_set
    from training.reader import make_plan
    from training.stores import joined

    connect()
    require_workers_fit(recipe.scaling)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    sizes = image_sizes(inputs.dataset)
    without = recipe.training.leave_out_domains
    quadruples = read_quadruples(inputs.dataset, "train", without)
    store: FeatureStore | ImageSet
    if recipe.tower.online:
        config = inputs.model.config
        shape = (config.num_image_tokens, config.vision_config.hidden_size)
        store = image_set(inputs.dataset, inputs.processor, shape)
    else:
        store = joined(inputs.stores)
    queries = load_queries(quadruples, sizes, store, inputs.processor)
    queries = with_negatives(queries, recipe.training, quadruples, inputs.dataset, store)
    done = checkpoints.complete_steps(draft.url)
    checkpoints.remove_after(draft.url, done[-1] if done else 0)
    # beside this driver, as Ray Train's controller: a machine that is lost shall cost its workers alone
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    weights = inputs.model.state_dict()
    plan, streamed = None, dict[str, Any]()
    if isinstance(store, ImageSet):
        plan = ray.put(
            make_plan(recipe, inputs.dataset, quadruples, store, queries, inputs.sampler, inputs.processor)
        )
        side = inputs.processor.image_size
        streamed = streams(recipe, draft.url, inputs.total_steps, plan, side)
    else:
        weights = {k: v for k, v in weights.items() if not k.startswith("vision_model.")}
    job = Job(
        recipe=recipe,
        run_url=draft.url,
        stores=tuple((store.version.url, store.key) for store in inputs.stores),
        config=inputs.model.config.to_dict(),
        weights=ray.put(weights),
        queries=ray.put(queries),
        sampler=ray.put(inputs.sampler),
        galleries=ray.put(load_dev(inputs.dataset, store, inputs.processor, without)),
        plan=plan,
        board=board,
        total_steps=inputs.total_steps,
        label=f"{draft.name}/{draft.key}",
    )
    resumed = done[-1] if done else 0
    with (
        Progress("train", inputs.total_steps, "steps", done=resumed) as progress,
        Watch(board, recipe.scaling, progress, log, attendants) as watch,
    ):
        run_to_end(job, streamed, watch)
    parts: dict[str, float]
    parts, held, failure, rows = ray.get(board.result.remote())
    starts = ray.get(board.started.remote())
    attendants.hold.require()
    if failure:
        kept = checkpoints.complete_steps(draft.url)
        asked = quadruples["query_id"].take(rows).to_pylist() if rows else []
        raise _failed(failure, asked, kept[-1] if kept else 0, draft)
    if not storage.exists(draft.path(TRAINED)):
        raise OacirError(f"{draft.url}: training stopped before its end; the same command goes on")
    ray.kill(board)
    for name in (RAY_FOLDER, DIVERGED):
        storage.remove(storage.join(draft.url, name))
    steps = checkpoints.complete_steps(draft.url)[-1] - resumed
    per_step = {part: round(1000 * seconds / steps, 2) for part, seconds in parts.items()} if steps else {}
    began = [{"step": start.step, "workers": len(start.nodes)} for start in starts]
    return {"ms_per_step": per_step, "bytes_of_worker": held, "starts": began}, resumed


def _failed(failure: str, query_ids: Sequence[str], kept: int, draft: Draft) -> OacirError:
    """What a training that cannot go on tells; the whole batch, where one is to blame, lies in the run."""
    if not query_ids:
        left = f"the checkpoint of step {kept:,} is good, and the same command goes on from there"
        return OacirError(f"{failure}; {left if kept else 'no checkpoint was written'} (run {draft.url})")
    told = {"problem": failure, "query_ids": list(query_ids), "checkpoint": kept}
    storage.write_bytes(draft.path(DIVERGED), json.dumps(told, indent=1, ensure_ascii=False).encode())
    return OacirError(diverged_line(failure, query_ids, kept, draft.url))


def diverged_line(failure: str, query_ids: Sequence[str], kept: int, run_url: str) -> str:
    """What a diverged training tells: where, the queries of that batch, what to do, and what is left.

    Args:
        failure: what the workers found.
        query_ids: of the global batch of that step.
        kept: step of the last checkpoint; 0 where there is none.
        run_url: where the run lies.
    """
    named = ", ".join(query_ids[:QUERIES_NAMED])
    others = len(query_ids) - QUERIES_NAMED
    more = f" and {others:,} more (all in {DIVERGED} of the run)" if others > 0 else ""
    left = f"the checkpoint of step {kept:,} is good" if kept else "no checkpoint was written"
    return (
        f"{failure}, in the batch of queries {named}{more}; lower training.learning_rate or set training.clip_norm,"
        f" or see what is wrong with these queries; {left} (run {run_url})"
    )


def _commit(
    recipe: TrainRecipe, draft: Draft, inputs: Inputs, costs: Mapping[str, Any], seconds: float
) -> Version:
    import pyarrow as pa
    from safetensors.torch import load

    from training.devset import DEV_COLUMNS, MEASURES, mean_by_step
    from training.export import FOLDER, write_export
    from training.history import HISTORY_COLUMNS
    from training.towers import merge_adapters

    last_step = checkpoints.complete_steps(draft.url)[-1]  # before the recipe's last where patience ran out
    state = next(checkpoints.Saved.newest(draft.url, last_step, recipe.scaling.workers).parts(0))
    means = mean_by_step(state["dev"].tolist())
    exported = last_step
    if recipe.training.select == "best_on_dev":
        exported = max(means, key=means.__getitem__)  # the first of equals, as the loop chose
        learned = checkpoints.load_best(draft.url, exported)
    else:
        learned = load(storage.read_bytes(draft.path(TRAINED)))
    lacking = {n for n, p in inputs.model.named_parameters() if p.requires_grad} ^ set(learned)
    if lacking:
        raise OacirError(
            f"{draft.url}: the weights of step {exported:,} are not those that this recipe trains, first"
            f" {min(lacking)}; delete the run and train again"
        )
    inputs.model.load_state_dict(learned, strict=False)
    if recipe.tower.mode == "lora":
        merge_adapters(inputs.model)
    files: list[FileEntry] = write_export(inputs.model.eval(), inputs.processor, draft.url)
    history = _table(state["history"], HISTORY_COLUMNS, ("step", "epoch"))
    dev = _table(state["dev"], DEV_COLUMNS, ("step", "epoch", "gallery", "queries"))
    names = _dev_domains(inputs.dataset, recipe.training.leave_out_domains)
    domains = pa.array([names[i] for i in dev["gallery"].to_pylist()], pa.string())
    dev = dev.set_column(dev.column_names.index("gallery"), "domain", domains)
    for name, table in (("history", history), ("dev", dev)):
        storage.write_table(draft.path(f"{name}.parquet"), table)
        files.append(file_entry(draft.url, f"{name}.parquet", len(table)))
    last = history.slice(len(history) - 1).to_pylist()[0]
    measured = dev.filter(pa.compute.equal(dev["step"], exported))
    figures: dict[str, Any] = {
        "steps": last["step"],
        "exported_step": exported,
        "loss": last["loss"],
        "skipped_steps": int(sum(history["skipped"].to_pylist())),
        "quadruples": inputs.queries,
        "dev": {m: pa.compute.mean(measured[m]).as_py() for m in MEASURES} if len(measured) else {},
        "regions": inputs.regions,
        **costs,
    }
    weights = {f.path: f.sha256 for f in files if f.path.endswith(".safetensors")}
    content: dict[str, int | str] = {**weights, "history": rows_hash(history.select(UNTIMED).to_pylist())}
    for role, store in zip(("feature_key", "view_feature_key"), inputs.stores, strict=False):
        figures[role] = store.key
    figures["tower"] = recipe.tower.mode
    card_path = f"{FOLDER}/{card.FILE}"
    text = card.model_card(recipe, inputs.model, inputs.dataset.manifest, figures)
    storage.write_bytes(draft.path(card_path), text.encode())
    files.append(file_entry(draft.url, card_path))
    traces = storage.files_in(draft.path(PROFILE_FOLDER))
    files += [file_entry(draft.url, f"{PROFILE_FOLDER}/{file.path}") for file in traces]
    version = draft.commit(
        content_hash=content_hash(content),
        files=files,
        parents=inputs.parents,
        seconds={"train": seconds},
        figures=figures,
    )
    storage.remove(draft.path(TRAINED))
    return version


def _dev_domains(dataset: Version, without: Sequence[str]) -> list[str]:
    return sorted(set(read_quadruples(dataset, "dev", without)["domain"].to_pylist()))


def _table(values: Any, columns: tuple[str, ...], whole: tuple[str, ...]) -> Any:
    import pyarrow as pa

    arrays = {name: pa.array(values[:, i].numpy()) for i, name in enumerate(columns)}
    return pa.table({n: a.cast(pa.int64()) if n in whole else a for n, a in arrays.items()})
