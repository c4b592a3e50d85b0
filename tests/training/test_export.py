"""From a recipe to a model, and from an exported directory back to the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infra.base import versions
from infra.base.config import Config
from infra.base.errors import OacirError, VersionError
from training.config import ModelSection
from training.export import build_model, build_processor, open_model, write_export
from training.model.config import preset

TEXTS = ["a red car on the beach", "the bag in the snow"]
SIZES = {"qformer.vocab_size": 60, "crm_feedforward": 16, "vision_config.intermediate_size": 32}


class Nothing(Config):
    """A recipe without fields."""


def section(**changes: object) -> ModelSection:
    return ModelSection.model_validate({"overrides": SIZES, **changes})


def state(model: torch.nn.Module, prefix: str = "") -> dict[str, list[float]]:
    return {k: v.flatten().tolist() for k, v in model.state_dict().items() if k.startswith(prefix)}


@pytest.fixture
def exported(tmp_path: Path) -> str:
    """A finished run that holds nothing but its export."""
    model = build_model(section(seed=3))
    processor = build_processor(section(), model.config, lambda: TEXTS)
    draft = versions.start("runs", "small", "k1", Nothing(), root=str(tmp_path))
    draft.commit(content_hash="c" * 64, files=write_export(model, processor, draft.url))
    return draft.url


def test_an_export_loads_to_the_same_model_tower_included(exported: str) -> None:
    model, processor = open_model(exported)
    expected = build_model(section(seed=3))
    assert state(model) == state(expected)
    assert model.tower_state_hash() == expected.tower_state_hash()
    assert not model.training
    ours = build_processor(section(), expected.config, lambda: TEXTS).texts(TEXTS)
    assert [t.tolist() for t in processor.texts(TEXTS)] == [t.tolist() for t in ours]


def test_an_export_directory_loads_without_its_run(exported: str) -> None:
    model, _ = open_model(f"{exported}/export", with_tower=False)
    assert model.vision_model is None


def test_an_unfinished_run_holds_no_model(tmp_path: Path) -> None:
    draft = versions.start("runs", "small", "k1", Nothing(), root=str(tmp_path))
    with pytest.raises(VersionError, match="unfinished"):
        open_model(draft.url)


def test_a_dataset_holds_no_model(tmp_path: Path) -> None:
    draft = versions.start("datasets", "small", "k1", Nothing(), root=str(tmp_path))
    draft.commit(content_hash="c" * 64, files=[])
    with pytest.raises(OacirError, match="holds no exported model; it is a datasets version"):
        open_model(draft.url)


def test_an_export_on_s3_loads(s3_bucket: str, tmp_path: Path) -> None:
    model = build_model(section(seed=3))
    processor = build_processor(section(), model.config, lambda: TEXTS)
    draft = versions.start("runs", "small", "k1", Nothing(), root=f"{s3_bucket}/root")
    draft.commit(content_hash="c" * 64, files=write_export(model, processor, draft.url))
    assert state(open_model(draft.url, cache=tmp_path)[0]) == state(model)


def test_weights_keep_everything_but_a_modulator_they_lack(exported: str) -> None:
    """The paper's start: weights without a CAAM; the CAAM comes from the seed."""
    weights = f"{exported}/export"
    baseline = build_model(ModelSection(weights=weights, modulation="none"))
    assert baseline.caam is None
    deeper = build_model(ModelSection(weights=weights, crm_layers=3, seed=9))
    source, _ = open_model(weights)
    for part in ("vision_model.", "qformer.", "query_tokens", "temp"):
        assert state(deeper, part) == state(source, part) == state(baseline, part)
    assert state(deeper, "caam.") == state(build_model(section(crm_layers=3, seed=9)), "caam.")
    unchanged = build_model(ModelSection(weights=weights, seed=9))
    assert state(unchanged) == state(source)


def test_the_recipe_says_what_the_processor_sees_also_over_that_of_the_weights(exported: str) -> None:
    drawn = {"reference_view": "drawn", "text_entity": "drawn", "region": "mask"}
    for changes in ({}, {"weights": f"{exported}/export"}):
        ours = ModelSection.model_validate({"overrides": SIZES} | drawn if not changes else changes | drawn)
        processor = build_processor(ours, preset("tiny", **SIZES), lambda: TEXTS)
        assert {name: getattr(processor, name) for name in drawn} == drawn
    processor.save_pretrained(f"{exported}/export")
    plain = ModelSection(weights=f"{exported}/export")
    assert build_processor(plain, preset("tiny", **SIZES), lambda: TEXTS).reference_view == "full"


def test_overrides_beside_weights_are_refused(exported: str) -> None:
    with pytest.raises(OacirError, match=r"model\.overrides .* remove one of the two"):
        build_model(ModelSection(weights=f"{exported}/export", overrides={"embed_dim": 8}))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"tokenizer": "./none"},
            r"^tokenizer \./none: cannot be loaded \(.*\); give a directory or Hub id$",
        ),
        (
            {"weights": "./none"},
            r"^model\.weights \./none: cannot be loaded \(.*\); give a directory or Hub id$",
        ),
        ({"weights": "{tmp}/empty"}, "is no version of oacir"),
        ({"weights": "{tmp}/weightless"}, r"^model\.weights .*/weightless: cannot be loaded \(.*safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(tmp_path: Path, wrong: dict[str, str], told: str) -> None:
    (tmp_path / "empty").mkdir()
    preset("tiny").save_pretrained(tmp_path / "weightless")
    ours = section(**{key: value.format(tmp=tmp_path) for key, value in wrong.items()}, overrides={})
    with pytest.raises(OacirError, match=told) as error:
        build_processor(ours, build_model(ours).config, lambda: TEXTS)
    assert "\n" not in str(error.value)


def test_random_weights_do_not_depend_on_the_number_of_threads() -> None:
    threads, hashes = torch.get_num_threads(), set()
    for count in (1, 2):
        torch.set_num_threads(count)
        hashes.add(build_model(ModelSection()).tower_state_hash())
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert len(hashes) == 1
