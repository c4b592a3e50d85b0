"""Embedding: every used content once, shards that resume, the tower's own tokens, the right images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from small_benchmark import write_benchmark

from infra.base import storage
from infra.base.command import Context
from infra.base.errors import OacirError, VersionError
from infra.base.versions import Version, start
from pipelines.embed import _plans, _row, embed
from pipelines.embedder import Embedder, gpu_pool
from training.config import EmbedSection, TrainRecipe
from training.export import build_model, build_processor
from training.features import FeatureStore
from training.model.config import preset

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return write_benchmark(tmp_path_factory.mktemp("embed"), identities=6, domains=("a",))


def context(benchmark: Version, name: str = "root", **changes: object) -> Context:
    return Context(root=str(Path(benchmark.url).parents[2] / name), **changes)


def recipe(benchmark: Version, **changes: object) -> TrainRecipe:
    sections = {"embed": {"images_per_shard": 10, "batch_size": 4, "workers": 1}, **changes}
    return TrainRecipe.model_validate({"dataset": benchmark.url, **sections})


def test_tokens_are_the_towers_own(ray_session: None, benchmark: Version) -> None:
    ours = recipe(benchmark)
    outcome = embed(ours, context(benchmark))
    assert outcome.figures["forwards"] == 24
    assert outcome.location is not None
    store = FeatureStore.open(outcome.location)
    images = benchmark.table("images").to_pylist()
    assert len(store) == len({i["sha256"] for i in images}) == 24

    model = build_model(ours.model)
    processor = build_processor(ours.model, model.config, lambda: ["a"])
    for image in images[::7]:
        pixels = processor.pixels([Image.open(image["uri"])])
        expected = model.encode_pixels(pixels).to(torch.bfloat16).float()
        assert torch.allclose(store.tokens(store.rows([image["image_id"]])), expected, rtol=2e-2, atol=1e-2)

    before = {p: p.stat().st_mtime_ns for p in Path(outcome.location).rglob("*") if p.is_file()}
    again = embed(ours, context(benchmark))
    assert again.message.startswith("nothing to do")
    assert before == {p: p.stat().st_mtime_ns for p in Path(outcome.location).rglob("*") if p.is_file()}

    # another modulation has the same tower: one store serves both models
    beta0 = recipe(benchmark, model={"modulation": "none"})
    assert embed(beta0, context(benchmark)).location == outcome.location


@pytest.mark.parametrize("kind", ["int8", "bfloat16 arithmetic"])
def test_int8_and_bfloat16_make_stores_of_their_own(ray_session: None, benchmark: Version, kind: str) -> None:
    settings = {"dtype": "int8"} if kind == "int8" else {"precision": "bfloat16", "dtype": "float32"}
    sizes = {"images_per_shard": 10, "batch_size": 4, "workers": 1}
    exact = FeatureStore.open(
        str(embed(recipe(benchmark, embed=sizes | {"dtype": "float32"}), context(benchmark)).location)
    )
    ours = recipe(benchmark, embed=sizes | settings)
    outcome = embed(ours, context(benchmark))
    assert outcome.figures["forwards"] == 24  # none of the other store's is taken for one of these
    store = FeatureStore.open(str(outcome.location))
    assert store.key != exact.key
    found = store.version.manifest.figures
    assert (found["dtype"], found["precision"]) == (ours.embed.dtype, ours.embed.precision)
    assert store.size_bytes == outcome.figures["bytes"]
    ids = [row["image_id"] for row in benchmark.table("images").to_pylist()]
    whole, less = exact.tokens(exact.rows(ids)), store.tokens(store.rows(ids))
    assert not torch.equal(whole, less)
    if kind == "int8":
        scale = whole.abs().amax(-1, keepdim=True) / 127
        assert ((whole - less).abs() <= 0.51 * scale).all()
        assert store.size_bytes / exact.size_bytes == (128 + 4) / (4 * 128)
    else:
        assert ((whole - less).norm() / whole.norm()).item() < 2e-2


def test_the_manifest_holds_the_hashes_of_what_lies_there(ray_session: None, benchmark: Version) -> None:
    """Of shards that this run wrote, hashed before they were, and of those of an earlier run."""
    ours = recipe(benchmark, embed={"images_per_shard": 7, "batch_size": 4, "workers": 1})
    url = Path(str(embed(ours, context(benchmark, "hashes")).location))
    for lost in ("manifest.json", "index.parquet"), ("manifest.json", "shards/00001"):
        entries = FeatureStore.open(str(url)).version.manifest.files
        assert len(entries) == 4 + 1
        for entry in entries:
            assert hashlib.sha256((url / entry.path).read_bytes()).hexdigest() == entry.sha256
        for file in [p for p in url.rglob("*") if str(p.relative_to(url)).startswith(lost)]:
            file.unlink()
        assert embed(ours, context(benchmark, "hashes")).location == str(url)


def test_threads_that_decode_change_nothing(ray_session: None, benchmark: Version) -> None:
    found = {}
    for threads in (1, 5):
        settings = {"images_per_shard": 10, "batch_size": 4, "workers": 1, "decode_threads": threads}
        outcome = embed(recipe(benchmark, embed=settings), context(benchmark, f"threads-{threads}"))
        found[threads] = FeatureStore.open(str(outcome.location)).version.manifest.content_hash
    assert found[1] == found[5]


def test_an_actor_makes_several_shards_of_a_task(ray_session: None, benchmark: Version) -> None:
    """As on GPUs, where a shard is written while the next one is computed."""
    import ray.data

    ours = recipe(benchmark, embed={"images_per_shard": 5, "batch_size": 4, "workers": 1})
    where = context(benchmark, "actors")
    (plan,) = _plans(ours, where)
    draft = start("features", "small", plan.key, ours, root=where.root)
    rows = ray.data.from_items([_row(draft, plan, shard) for shard in plan.shards], override_num_blocks=2)
    made = rows.map_batches(
        Embedder,
        fn_constructor_args=(ours, plan.tower_hash),
        batch_size=3,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    ).take_all()
    assert sorted((m["shard"], m["images"], m["error"]) for m in made) == [
        (0, 5, ""), (1, 5, ""), (2, 5, ""), (3, 5, ""), (4, 4, ""),
    ]  # fmt: skip
    for row in made:
        written = Path(draft.path(plan.shards[row["shard"]]["path"])).read_bytes()
        assert hashlib.sha256(written).hexdigest() == row["sha256"]
    assert embed(ours, where).message.endswith(f"(5 of 5 shards from an earlier run): {draft.url}")
    plain = embed(ours, context(benchmark, "no-actors")).location
    found = [FeatureStore.open(str(url)).version.manifest.content_hash for url in (draft.url, plain)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("settings", "gpus", "cpus", "shards", "expected"),
    [
        ({}, 1, 16.0, 80, (1, 4)),
        ({}, 8, 64.0, 80, (8, 4)),
        ({"decode_threads": 8}, 8, 64.0, 80, (8, 7)),  # a CPU is left for Ray's own tasks
        ({"decode_threads": 8}, 8, 64.0, 3, (3, 8)),  # no more workers than shards
        ({"workers": 2}, 8, 8.0, 80, (2, 3)),
        ({}, 4, 4.0, 80, (4, 0.75)),
        ({}, 1, 1.0, 80, (1, 0)),
    ],
)
def test_gpu_workers_never_ask_for_more_cpus_than_there_are(
    settings: dict[str, int], gpus: int, cpus: float, shards: int, expected: tuple[int, float]
) -> None:
    found = gpu_pool(EmbedSection(**settings), gpus, cpus, shards)
    assert found == expected
    workers, each = found
    assert workers * each <= max(0.0, cpus - 1)


@pytest.mark.parametrize(
    ("workers", "gpus", "told"),
    [
        (None, 0, "the Ray session has no GPU"),
        (3, 2, "embed.workers 3: each has a GPU, the Ray session has 2"),
    ],
)
def test_gpus_that_are_not_there_are_refused(workers: int | None, gpus: int, told: str) -> None:
    with pytest.raises(OacirError, match=told):
        gpu_pool(EmbedSection(workers=workers), gpus, 16.0, 80)


def test_a_gpu_that_is_not_there_is_told_before_anything_is_computed(
    ray_session: None, benchmark: Version
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    ours = recipe(benchmark, scaling={"use_gpu": True})
    with pytest.raises(OacirError, match=r"scaling\.use_gpu: the Ray session has no GPU"):
        embed(ours, context(benchmark, "no-gpu"))
    plan = embed(ours, context(benchmark, "no-gpu-plan", dry_run=True))
    assert "images_per_s_of_a_worker" not in plan.figures
    assert plan.details[-1].startswith("scaling.use_gpu: no GPU here, so the time is not told")


def test_a_random_tower_of_real_size_is_warned_of_once_in_the_plan_and_at_the_start(
    ray_session: None, benchmark: Version, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {
        "vision_config.hidden_size": 16, "vision_config.num_attention_heads": 2, "vision_config.num_hidden_layers": 1,
        "vision_config.intermediate_size": 16, "vision_config.image_size": 28, "qformer.hidden_size": 16,
        "qformer.num_attention_heads": 2, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 16,
    }  # fmt: skip
    model = {"preset": "vit_g", "overrides": sizes, "modulation": "none", "reference_view": "crop"}
    ours = recipe(benchmark, model=model)
    plan = embed(ours, context(benchmark, "warned", dry_run=True))
    assert sum("the image tower of vit_g is random" in line for line in plan.details) == 1
    assert not caplog.records
    embed(ours, context(benchmark, "warned"))
    assert [r.levelname for r in caplog.records if "vit_g is random" in r.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("view", ["crop", "drawn"])
def test_a_view_gets_a_store_of_its_own_beside_that_of_the_images(
    ray_session: None, benchmark: Version, view: str
) -> None:
    ours = recipe(benchmark, model={"modulation": "none", "reference_view": view})
    plan = embed(ours, context(benchmark, view, dry_run=True))
    assert (plan.figures["forwards"], plan.figures["views"]["forwards"]) == (24, 24)
    assert [line.split(", ")[0] for line in plan.details[::3]] == ["24 images", f"24 references ({view})"]
    assert plan.message.count("would write features small/") == 2
    assert not Path(context(benchmark, view).root).exists()

    outcome = embed(ours, context(benchmark, view))
    assert outcome.message.count("embedded 24") == 2
    plain = embed(recipe(benchmark), context(benchmark, view))
    assert plain.location == outcome.location
    assert plain.message.startswith("nothing to do")  # the images are the same store for all
    views = FeatureStore.open(outcome.figures["views"]["location"])
    assert views.version.manifest.figures["view"] == view
    assert views.key != FeatureStore.open(str(outcome.location)).key

    model, processor = build_model(ours.model), build_processor(ours.model, preset("tiny"), lambda: ["a"])
    uri_of = {r["image_id"]: r["uri"] for r in benchmark.table("images").to_pylist()}
    for row in benchmark.table("quadruples").to_pylist()[::7]:
        box = tuple(row["reference_box"])
        image = Image.open(uri_of[row["reference_id"]])
        pixels = processor([image], ["a"], [box]).pixels
        expected = model.encode_pixels(pixels).to(torch.bfloat16).float()
        name = f"{row['reference_id']}#{','.join(str(int(v)) for v in box)}"
        found = views.tokens(views.rows([name]))
        assert torch.allclose(found, expected, rtol=2e-2, atol=1e-2)
        whole = model.encode_pixels(processor.pixels([image])).to(torch.bfloat16).float()
        assert not torch.allclose(found, whole, rtol=0.1, atol=0.1)
    assert embed(ours, context(benchmark, view)).message.count("nothing to do") == 2


def test_two_stores_do_not_go_to_one_place(benchmark: Version, tmp_path: Path) -> None:
    ours = recipe(benchmark, model={"modulation": "none", "reference_view": "crop"})
    with pytest.raises(OacirError, match=r"--out .*: names one version, .* crop makes two"):
        embed(ours, Context(root=str(tmp_path), out=str(tmp_path / "out")))


def test_a_killed_run_goes_on_with_the_missing_shards(ray_session: None, benchmark: Version) -> None:
    whole = embed(recipe(benchmark), context(benchmark, "whole")).location
    assert whole is not None
    hashes = FeatureStore.open(whole).version.manifest.content_hash
    # what a kill leaves: no manifest, one shard of three missing, one in mid-write under a temporary name
    (Path(whole) / "manifest.json").unlink()
    (Path(whole) / "index.parquet").unlink()
    lost = sorted(Path(whole).glob("shards/*.bin"))[1]
    lost.rename(lost.with_name(f".{lost.name}.0123abcd.tmp"))
    kept = {p: p.stat().st_mtime_ns for p in Path(whole).glob("shards/0*.bin")}
    with pytest.raises(VersionError, match="unfinished"):
        FeatureStore.open(whole)
    outcome = embed(recipe(benchmark), context(benchmark, "whole"))
    assert "(2 of 3 shards from an earlier run)" in outcome.message
    assert all(p.stat().st_mtime_ns == mark for p, mark in kept.items())
    assert FeatureStore.open(whole).version.manifest.content_hash == hashes


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(benchmark: Version) -> None:
    outcome = embed(recipe(benchmark), context(benchmark, "dry", dry_run=True))
    assert outcome.figures["forwards"] == 24
    config = preset("tiny")
    per_image = config.num_image_tokens * config.vision_config.hidden_size * 2  # bfloat16
    assert outcome.figures["bytes"] == 24 * per_image
    rate, workers = outcome.figures["images_per_s_of_a_worker"], outcome.figures["workers"]
    assert workers == 1
    assert outcome.figures["hours"] == pytest.approx(24 / rate / 3600, rel=1e-3)
    assert (
        f"{rate:,.1f} images/s in each of 1 workers, as measured on this machine now: " in outcome.details[2]
    )
    assert not Path(context(benchmark, "dry").root).exists()


def test_a_dry_run_for_a_cluster_says_whose_workers_it_counts(
    benchmark: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        unsaid = recipe(benchmark, embed={"images_per_shard": 10, "batch_size": 4})
        return " ".join(embed(unsaid, context(benchmark, "asked", dry_run=True)).details)

    assert "set embed.workers" not in told()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "set embed.workers" in told()


def test_a_dry_run_counts_no_more_workers_than_shards(benchmark: Version) -> None:
    many = recipe(benchmark)
    many = many.model_copy(update={"embed": many.embed.model_copy(update={"workers": 64})})
    outcome = embed(many, context(benchmark, "many", dry_run=True))
    assert outcome.figures["workers"] == 3
    rate = outcome.figures["images_per_s_of_a_worker"]
    assert outcome.figures["hours"] == pytest.approx(24 / rate / 3 / 3600, rel=1e-3)


def test_equal_bytes_are_embedded_once(tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path, identities=6, domains=("a",))
    table = storage.read_table(benchmark.path("images.parquet"))
    rows = table.to_pylist()
    rows[1] |= {"uri": rows[0]["uri"], "sha256": rows[0]["sha256"]}
    storage.write_table(benchmark.path("images.parquet"), pa.Table.from_pylist(rows, schema=table.schema))
    outcome = embed(recipe(benchmark), Context(root=str(tmp_path), dry_run=True))
    assert (outcome.figures["images"], outcome.figures["forwards"]) == (24, 23)


@pytest.mark.parametrize(
    ("damage", "told"),
    [("changed", r"red\.png: changed since the benchmark was built"), ("gone", r"red\.png: cannot be read")],
)
def test_an_image_that_is_not_the_benchmarks_stops_the_work_in_one_line(
    ray_session: None, tmp_path: Path, damage: str, told: str
) -> None:
    benchmark = write_benchmark(tmp_path, identities=6, domains=("a",))
    victim = next(Path(benchmark.url).glob("photos/a/*/red.png"))
    if damage == "changed":
        victim.write_bytes(victim.read_bytes() + b"more")
    else:
        victim.unlink()
    with pytest.raises(OacirError, match=told) as caught:
        embed(recipe(benchmark), Context(root=str(tmp_path)))
    assert "\n" not in str(caught.value)
