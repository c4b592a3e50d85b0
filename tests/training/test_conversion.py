"""`oacir convert`: what it writes, what it says, and that its result is what the other verbs take."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from infra import cli
from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import load_recipe
from infra.base.errors import OacirError, RecipeError
from tests.training.model.convert.conftest import HEADS, HIDDEN, QUERIES, lavis_state, released_state
from training.config import TrainRecipe
from training.conversion import ConvertRecipe, convert
from training.export import build_model, build_processor, open_model, write_export
from training.model.processing import train_wordpiece

TEXTS = ["a red car on the beach", "the bag in the snow"]
NAMES = {
    "none": "Blip2QformerOacirBaseline",
    "scalar": "Blip2QformerOacirAdaFocal",
    "vector": "Blip2QformerOacirAdaFocalVector",
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A scalar model of the authors."""
    torch.save({"epoch": 3, NAMES["scalar"]: released_state()}, tmp_path / "adafocal_scalar.pt")
    return str(tmp_path / "adafocal_scalar.pt")


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    train_wordpiece(TEXTS, 50).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def run(out: str | None, root: str = "nowhere", dry_run: bool = False, **fields: Any) -> Outcome:
    fields = {"overrides": HEADS, **fields}
    return convert(ConvertRecipe.model_validate(fields), Context(root, out, dry_run))


def test_a_dry_run_states_all_and_writes_nothing(source: str, tmp_path: Path) -> None:
    outcome = run(None, str(tmp_path / "root"), dry_run=True, source=source)
    state = released_state()
    kept = [w for n, w in state.items() if not n.startswith("Qformer.cls.") and "position_ids" not in n]
    # three joined biases in place of two each, with zeros for the keys
    parameters = sum(w.numel() for w in kept) + 3 * 24
    assert outcome.figures["tensors"] == len(kept) - 3
    assert outcome.figures["parameters"] == parameters
    assert outcome.figures["bytes"] == 4 * parameters
    assert outcome.message == (
        f"dry run: would write a model of {parameters / 1e6:,.1f} M parameters from 'released':"
        f" {tmp_path}/root/models/adafocal_scalar"
    )
    said = "\n".join(outcome.details)
    assert "tower: blip_2_vision_model, 3 blocks of 24, 4 heads, 28 px in patches of 7" in said
    assert "Q-Former: 4 layers of 32, 4 heads, 5 queries, 50 words; modulation scalar" in said
    assert "left out, the model has none: 1 of Qformer.bert.embeddings.position_ids, 7 of Qformer.cls" in said
    assert "a recipe that starts from it must name one (model.tokenizer" in said
    assert not (tmp_path / "root").exists()


def test_with_a_tokenizer_the_result_is_a_complete_model(source: str, tokenizer: str, tmp_path: Path) -> None:
    out = str(tmp_path / "model")
    outcome = run(out, source=source, tokenizer=tokenizer)
    assert outcome.location == out
    assert "tokenizer" not in "\n".join(outcome.details)
    model, processor = open_model(out)
    assert model.config.modulation == "scalar"
    assert torch.equal(model.query_tokens, released_state()["query_tokens"])
    assert processor.image_size == 28
    ids, mask = processor.texts(TEXTS)
    tokens = model.encode_pixels(torch.randn(2, 3, 28, 28))
    region = torch.ones(2, 17)
    assert model.encode_query(tokens, ids, mask, region).beta.shape == (2, 1)
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["finished"]
    assert record["left_out"] == list(outcome.figures["left_out"])


def test_without_a_tokenizer_a_recipe_that_names_one_starts_from_it(
    source: str, tokenizer: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "model")
    run(out, source=source)
    choices = [
        ("model.weights", out),
        ("model.tokenizer", tokenizer),
        ("model.crm_layers", "1"),
        ("model.seed", "4"),
    ]
    recipe = load_recipe(TrainRecipe, None, choices)
    model = build_model(recipe.model)
    processor = build_processor(recipe.model, model.config, lambda: TEXTS)
    assert torch.equal(model.query_tokens, released_state()["query_tokens"])
    assert len(model.caam.crm.transformer_encoder.layers) == 1  # another CAAM than the file's: from the seed
    ids, mask = processor.texts(TEXTS)
    tokens = model.train().encode_pixels(torch.randn(2, 3, 28, 28))
    model.encode_query(tokens, ids, mask, torch.ones(2, 17)).embedding.sum().backward()
    assert model.text_projection.weight.grad.abs().sum() > 0

    nameless = load_recipe(TrainRecipe, None, choices[:1])
    with pytest.raises(OacirError, match=r"has no tokenizer beside it; name one with model\.tokenizer"):
        build_processor(nameless.model, model.config, lambda: TEXTS)
    with pytest.raises(OacirError, match="has no tokenizer beside it; convert it with --tokenizer"):
        open_model(out)


def test_blip2_with_another_file_for_its_tower_becomes_a_model_with_a_new_modulator(tmp_path: Path) -> None:
    whole = lavis_state()
    tower = {
        n.removeprefix("visual_encoder."): w for n, w in whole.items() if n.startswith("visual_encoder.")
    }
    torch.save({"model": {n: w for n, w in whole.items() if "visual" not in n}}, tmp_path / "blip2.pth")
    torch.save(tower, tmp_path / "eva.pth")
    fields = {
        "source": str(tmp_path / "blip2.pth"),
        "tower": str(tmp_path / "eva.pth"),
        "modulation": "vector",
    }
    outcome = run(str(tmp_path / "model"), **fields, seed=3)
    said = "\n".join(outcome.details)
    assert "left out, the model has none: 7 of Qformer.cls, 2 of itm_head" in said
    assert f"started anew, the source has none: {len(outcome.figures['started'])} of caam" in said
    model = build_model(load_recipe(TrainRecipe, None, [("model.weights", outcome.location)]).model)
    assert model.caam.crm.output_head[-1].out_features == 1  # the recipe's scalar
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved["caam.crm.output_head.2.weight"].shape == (QUERIES, 512)
    assert saved["caam.probe_tokens"].shape == (1, 8, HIDDEN)


@pytest.mark.parametrize("modulation", NAMES)
@pytest.mark.parametrize("tower", ["eva", "clip"])
def test_to_the_authors_layout_and_every_weight_is_as_it_was(
    tmp_path: Path, modulation: str, tower: str
) -> None:
    state = released_state(modulation, tower)
    torch.save({"epoch": 1, "Theirs": state}, tmp_path / "theirs.pt")
    run(str(tmp_path / "ours"), source=str(tmp_path / "theirs.pt"))
    outcome = run(str(tmp_path / "back.pt"), source=str(tmp_path / "ours"), to="released", overrides={})
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == [NAMES[modulation]] == [outcome.figures["class"]]
    (found,) = back.values()
    assert set(found) == {name for name in state if not name.startswith("Qformer.cls.")}
    assert all(torch.equal(weight, state[name]) for name, weight in found.items())
    size = (tmp_path / "back.pt").stat().st_size
    assert size < 1.5 * sum(w.numel() * w.element_size() for w in found.values()) + 200_000
    # and once more through ours: the files of weights are equal byte for byte
    run(str(tmp_path / "again"), source=str(tmp_path / "back.pt"))
    files = [tmp_path / place / "model.safetensors" for place in ("ours", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_finished_run_goes_to_the_authors_layout_as_safetensors(
    source: str, tokenizer: str, tmp_path: Path
) -> None:
    run(str(tmp_path / "ours"), source=source, tokenizer=tokenizer)
    write_export(*open_model(str(tmp_path / "ours")), str(tmp_path / "run"))
    out = tmp_path / "back.safetensors"
    outcome = run(str(out), source=str(tmp_path / "run" / "export"), to="released", overrides={})
    assert "Qformer.cls) is not in it" in "\n".join(outcome.details)
    state = released_state()
    found = load_file(out)
    assert all(torch.equal(weight, state[name]) for name, weight in found.items())
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"class": NAMES["scalar"], "format": "pt"}
    with pytest.raises(OacirError, match=r"back\.safetensors: exists; choose another --out"):
        run(str(out), source=source, to="released")


def test_the_constant_of_a_baseline_is_no_weight_and_said(source: str, tmp_path: Path) -> None:
    fields = {"modulation": "fixed", "fixed_beta": 1.5, "to": "released"}
    outcome = run(None, str(tmp_path / "root"), source=source, **fields)
    assert outcome.location == str(tmp_path / "root" / "released" / "adafocal_scalar.pt")
    assert list(torch.load(outcome.location, weights_only=True)) == [NAMES["none"]]
    assert "β = 1.5 is no weight: give it to the authors' class as fixed_beta" in outcome.details


def test_what_is_finished_is_left_alone_and_what_is_half_done_is_done(source: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = run(str(out), source=source)
    weights, written = out / "model.safetensors", (out / "model.safetensors").stat().st_mtime_ns
    again = run(str(out), source=source)
    assert again.message == f"nothing to do: converted before: {out}"
    assert again.figures["parameters"] == first.figures["parameters"]
    assert weights.stat().st_mtime_ns == written
    # killed in mid-write: the record says so and the weights are not there
    record = json.loads((out / "conversion.json").read_text())
    (out / "conversion.json").write_text(json.dumps(record | {"finished": False}))
    expected = weights.read_bytes()
    weights.unlink()
    run(str(out), source=source)
    assert weights.read_bytes() == expected
    assert json.loads((out / "conversion.json").read_text())["finished"]


def test_a_place_that_holds_something_else_is_refused(source: str, tmp_path: Path) -> None:
    run(str(tmp_path / "model"), source=source)
    with pytest.raises(OacirError, match="holds the conversion of another source or recipe"):
        run(str(tmp_path / "model"), source=source, modulation="none")
    torch.save({"X": released_state("vector")}, source)
    with pytest.raises(OacirError, match="holds the conversion of another source or recipe"):
        run(str(tmp_path / "model"), source=source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(OacirError, match="holds files that are no conversion"):
        run(str(tmp_path / "full"), source=source)
    with pytest.raises(OacirError, match="is a model of oacir already"):
        run(str(tmp_path / "other"), source=str(tmp_path / "model"), overrides={})
    with pytest.raises(OacirError, match=r"the released layout is one file; name it \.pt"):
        run(str(tmp_path / "other"), source=source, to="released")


def test_from_and_to_s3(s3_bucket: str, source: str, tokenizer: str, tmp_path: Path) -> None:
    there = f"{s3_bucket}/theirs/adafocal_scalar.pt"
    storage.send(Path(source), there)
    outcome = run(None, f"{s3_bucket}/root", source=there, tokenizer=tokenizer)
    assert outcome.location == f"{s3_bucket}/root/models/adafocal_scalar"
    model, processor = open_model(outcome.location, cache=tmp_path / "cache")
    assert torch.equal(model.query_tokens, released_state()["query_tokens"])
    assert processor.image_size == 28
    run(f"{s3_bucket}/back.pt", source=source, to="released")
    storage.fetch(f"{s3_bucket}/back.pt", tmp_path / "back.pt")
    assert list(torch.load(tmp_path / "back.pt", weights_only=True)) == [NAMES["scalar"]]
    storage.write_bytes(f"{s3_bucket}/bad.pt", b"no")
    with pytest.raises(OacirError, match=rf"^{s3_bucket}/bad\.pt: .*no torch file"):
        run(None, f"{s3_bucket}/root", source=f"{s3_bucket}/bad.pt")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fixed_beta": "1.5"}, "fixed_beta has an effect only with modulation 'fixed'"),
        ({"to": "released", "tokenizer": "x"}, "has no place for a tokenizer"),
        ({"overrides": '{"modulation": "none"}'}, "fields of their own"),
        ({"layout": "clip"}, "'released'"),
    ],
)
def test_recipes_that_contradict_themselves(fields: dict[str, str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(ConvertRecipe, None, [("source", "x"), *fields.items()])


def test_the_command_line(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "convert",
        "--source",
        source,
        "--overrides",
        json.dumps(HEADS),
        "--out",
        str(tmp_path / "model"),
    ]
    assert cli.main(words) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].endswith(f"M parameters from 'released': {tmp_path}/model")
    )
    words = ["convert", "--source", source, "--tokenizer", str(tmp_path / "none"), *words[3:5], "--dry-run"]
    assert cli.main(words) == 1
    printed = capsys.readouterr().err
    assert "none: cannot be loaded" in printed
    assert printed.count("\n") == 1


def test_the_commands_of_the_documentation_are_understood() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text().splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("oacir ")]
    assert [words[0] for words in commands] == ["convert", "convert", "convert", "train", "convert"]
    for words in commands:
        call = cli._parse(words)
        load_recipe(cli._verb(call.verb).load()[0], call.config, call.overrides)
