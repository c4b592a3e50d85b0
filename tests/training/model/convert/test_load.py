"""Checkpoint files of every layout → a configuration and weights."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infra.base.errors import OacirError
from tests.golden.conftest import Golden
from tests.reference import adafocal as reference
from tests.reference.cases import Sizes, random_boxes, random_inputs, random_weights
from tests.training.model.convert.conftest import (
    BETA_HIDDEN,
    CRM_FEEDFORWARD,
    CRM_LAYERS,
    DEPTH,
    EMBED,
    FEEDFORWARD,
    HEADS,
    HIDDEN,
    LAYERS,
    MLP,
    PATCH,
    POSITIONS,
    PROBES,
    QUERIES,
    VOCAB,
    WIDTH,
    lavis_state,
    released_state,
    tower_shapes,
)
from training.model.adafocal import AdaFocalModel
from training.model.auto import new_model, random_model
from training.model.convert import Converted, read_checkpoint, to_release

State = dict[str, Tensor]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state dict as the authors' code does; gives the path."""

    def write(state: State, key: str = "Blip2QformerOacirAdaFocal", name: str = "checkpoint.pt") -> Path:
        torch.save({"epoch": 7, key: state}, tmp_path / name)
        return tmp_path / name

    return write


def model_of(converted: Converted) -> AdaFocalModel:
    model = new_model(converted.config)
    model.load_state_dict(converted.state)
    return model.eval()


@pytest.mark.parametrize("tower", ["eva", "clip"])
@pytest.mark.parametrize("modulation", ["scalar", "vector", "none"])
def test_sizes_and_modulation_come_from_the_weights(written, modulation, tower):
    found = read_checkpoint(written(released_state(modulation, tower)), overrides=HEADS)
    assert (found.layout, found.key, found.started) == ("released", "Blip2QformerOacirAdaFocal", ())
    assert len(found.left_out) == 8  # the language head's seven and the index of positions
    config, vision, qformer = found.config, found.config.vision_config, found.config.qformer
    assert vision.model_type == {"eva": "blip_2_vision_model", "clip": "clip_vision_model"}[tower]
    assert (vision.hidden_act, vision.layer_norm_eps) == {
        "eva": ("gelu", 1e-6),
        "clip": ("quick_gelu", 1e-5),
    }[tower]
    assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size) == (WIDTH, DEPTH, MLP)
    assert (vision.patch_size, vision.image_size, vision.num_attention_heads) == (PATCH, 28, 4)
    assert (qformer.hidden_size, qformer.num_hidden_layers, qformer.intermediate_size) == (
        HIDDEN,
        LAYERS,
        FEEDFORWARD,
    )
    assert (qformer.vocab_size, qformer.max_position_embeddings) == (VOCAB, POSITIONS)
    assert (qformer.cross_attention_frequency, qformer.encoder_hidden_size) == (2, WIDTH)
    assert (config.num_query_tokens, config.embed_dim, config.max_text_tokens) == (QUERIES, EMBED, POSITIONS)
    assert (config.modulation, config.vision_norm_eps) == (modulation, 1e-5)
    if modulation != "none":
        assert (config.num_probe_tokens, config.crm_layers, config.crm_heads) == (PROBES, CRM_LAYERS, 8)
        assert (config.crm_feedforward, config.beta_hidden) == (CRM_FEEDFORWARD, BETA_HIDDEN)
    model = model_of(found)
    assert float(model.temperature.detach()) == pytest.approx(0.05)  # the file's, not the 0.07 of a new model


@pytest.mark.parametrize("modulation", ["scalar", "vector", "none"])
def test_a_checkpoint_of_the_authors_computes_what_the_slow_reference_does(written, modulation):
    """From the file to the query vectors, against an independent float64 version of the release."""
    sizes = Sizes()
    weights = random_weights(sizes, 3, sizes.queries if modulation == "vector" else 1)
    if modulation == "none":
        weights = {n: w for n, w in weights.items() if not n.startswith(("crm_module.", "contextual_probe"))}
    heads = {
        "vision_config.num_attention_heads": sizes.vit_heads,
        "qformer.num_attention_heads": sizes.heads,
        "crm_heads": sizes.crm_heads,
    }
    model = model_of(read_checkpoint(written({n: w.float() for n, w in weights.items()}), overrides=heads))
    inputs, options = random_inputs(sizes, 4), sizes.options(modulation)
    masks = torch.stack([reference.patch_mask(box, options) for box in random_boxes(sizes, 5)])
    exact = {n: w.float().double() for n, w in weights.items()}
    theirs = reference.tower(exact, options, inputs.reference_pixels.float().double())
    expected = reference.encode_query(exact, options, theirs, inputs.ids, inputs.mask, masks)
    targets, _ = reference.encode_target(exact, options, theirs)
    tokens = model.encode_pixels(inputs.reference_pixels.float())
    torch.testing.assert_close(tokens.double(), theirs, atol=1e-6, rtol=0)
    found = model.encode_query(tokens, inputs.ids, inputs.mask, masks.float())
    torch.testing.assert_close(found.embedding.double(), expected.f_q, atol=2e-5, rtol=0)
    torch.testing.assert_close(model.encode_target(tokens).double(), targets, atol=2e-5, rtol=0)
    if modulation != "none":
        torch.testing.assert_close(found.beta.double(), expected.beta, atol=1e-4, rtol=0)


def test_half_precision_becomes_float32_without_loss(written):
    """LAVIS keeps the tower's maps in float16 and the rest in float32."""
    state = released_state()
    mixed = {n: w.half() if n.startswith("visual_encoder.") and w.ndim > 1 else w for n, w in state.items()}
    found = read_checkpoint(written(mixed), overrides=HEADS)
    assert {weight.dtype for weight in found.state.values()} == {torch.float32}
    back = to_release(found.state, found.config)
    assert all(torch.equal(weight.to(mixed[name].dtype), mixed[name]) for name, weight in back.items())
    assert all(torch.equal(weight, mixed[name].to(weight.dtype)) for name, weight in back.items())


@pytest.mark.parametrize("form", ["safetensors", "bare", "legacy"])
def test_other_forms_of_the_file_give_the_same(tmp_path, written, form):
    state = released_state()
    path = tmp_path / f"other.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "bare":
        torch.save(state, path)
    else:
        torch.save({"Model": state}, path, _use_new_zipfile_serialization=False)
    expected = read_checkpoint(written(state), overrides=HEADS).state
    found = read_checkpoint(path, overrides=HEADS)
    assert set(found.state) == set(expected)
    assert all(torch.equal(found.state[name], weight) for name, weight in expected.items())


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_nothing_is_unpickled(tmp_path, form):
    path, trap = tmp_path / "evil.pt", tmp_path / "sprung"
    if form == "torch":
        torch.save({"Model": released_state(), "more": Trap(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(trap), protocol=4))
    found = {
        "torch": rf"holds more .* \({os.mkdir.__module__}\.mkdir\)",
        "pickle": "is no torch file of tensors",
    }
    with pytest.raises(OacirError, match=rf"evil\.pt: {found[form]} and is not unpickled") as error:
        read_checkpoint(path, overrides=HEADS)
    assert not trap.exists()
    assert "weights_only" not in str(error.value)  # torch's advice to unpickle it after all
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content", [b"hello", b"", b"\x80\x04K\x01.", b"PK\x03\x04", b"<html>not found</html>"]
)
def test_what_is_no_torch_file_is_one_line(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(OacirError, match=r"x\.pt: (is no|needs one)") as error:
        read_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(error.value)
    assert "()" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_one_line(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        torch.save({"M": released_state()}, whole)
    else:
        save_file(released_state(), whole)
    for length in (0, 100, whole.stat().st_size // 2):
        path = tmp_path / f"cut{length}{suffix}"
        path.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(OacirError, match=rf"cut{length}\{suffix}: ") as error:
            read_checkpoint(path, overrides=HEADS)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"A": {"a": torch.ones(1)}, "B": {"b": torch.ones(1)}}, r"found 2 \(A, B\)"),
        ({"epoch": 3}, "found none"),
        (torch.ones(3), "found none"),
        ({"A": {}}, "found none"),
    ],
)
def test_exactly_one_state_dict_is_needed(tmp_path, tree, says):
    torch.save(tree, tmp_path / "x.pt")
    with pytest.raises(OacirError, match=rf"x\.pt: needs one dict of named tensors, {says}; save"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(OacirError, match=r"nothing\.pt: no such file; give a checkpoint file or a directory"):
        read_checkpoint(tmp_path / "nothing.pt")


def test_all_that_does_not_fit_is_one_error(written):
    state = released_state()
    del state["query_tokens"], state["visual_encoder.blocks.1.attn.v_bias"]
    state |= {
        "prompt_tokens": torch.ones(3),
        "text_proj.weight": torch.ones(7, HIDDEN),
        "Qformer.bert.encoder.layer.2.output.dense.weight": torch.ones(3),
        "ln_vision.bias": torch.ones(WIDTH, dtype=torch.float64),
    }
    path = written(state)
    with pytest.raises(OacirError) as error:
        read_checkpoint(path, overrides=HEADS | {"num_query_tokens": QUERIES})
    assert str(error.value) == (
        f"{path}: weights do not fit as 'released'"
        ": 2 missing: 'query_tokens', 'visual_encoder.blocks.1.attn.v_bias'"
        "; 1 unexpected: 'prompt_tokens'"
        f"; 2 of another shape: 'text_proj.weight [7, {HIDDEN}] instead of [{EMBED}, {HIDDEN}]'"
        f", 'Qformer.bert.encoder.layer.2.output.dense.weight [3] instead of [{HIDDEN}, {FEEDFORWARD}]'"
        "; 1 of an unreadable type: 'ln_vision.bias torch.float64'"
        "; name sizes that no weight tells with --overrides, or another --layout"
    )


def test_a_long_list_is_cut_with_its_count(written):
    state = {name: weight for name, weight in released_state().items() if "layer.1." not in name}
    with pytest.raises(OacirError) as error:
        read_checkpoint(written(state), overrides=HEADS)
    # self-attention: 4 maps and a LayerNorm; two feed-forwards of 2 maps and a LayerNorm; each of weight and bias
    assert "22 missing: 'Qformer.bert.encoder.layer.1." in str(error.value)
    assert " and 2 more; name" in str(error.value)


def test_weights_of_something_else_are_refused(tmp_path):
    torch.save({"layer.weight": torch.ones(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(OacirError, match=r"847 missing: .* and 827 more; 1 unexpected: 'layer\.weight'"):
        read_checkpoint(tmp_path / "x.pt")


def test_heads_that_no_width_tells_must_be_named(written):
    path = written(released_state())
    with pytest.raises(
        OacirError, match=r"heads of vision_config .* width 24, no multiple of the usual 88; .*: N}'"
    ):
        read_checkpoint(path)
    with pytest.raises(OacirError, match=r"heads of qformer .* width 32, no multiple of the usual 64"):
        read_checkpoint(path, overrides={"vision_config.num_attention_heads": 4})
    with pytest.raises(OacirError, match=r"'qformer\.heads' is unknown"):
        read_checkpoint(path, overrides=HEADS | {"qformer.heads": 4})


def test_lavis_blip2_has_no_modulator_and_its_temperature_counts(written):
    found = read_checkpoint(written(lavis_state(), "model"), overrides=HEADS)
    assert (found.layout, found.config.modulation, found.started) == ("blip2_lavis", "none", ())
    assert {"itm_head.weight", "itm_head.bias"} < set(found.left_out)
    assert float(found.state["temp"]) == pytest.approx(0.09)
    state = lavis_state()
    del state["temp"]
    without = read_checkpoint(written(state, "model"), overrides=HEADS)
    assert without.started == ("temp",)
    assert float(without.state["temp"]) == pytest.approx(0.07)
    with pytest.raises(OacirError, match="1 missing: 'temp'"):
        read_checkpoint(written(state, "model"), "released", overrides=HEADS | {"embed_dim": EMBED})


@pytest.mark.parametrize("tower", ["eva", "clip"])
def test_a_lavis_file_without_its_frozen_tower_takes_one_from_a_second_file(tmp_path, written, tower):
    whole = lavis_state(tower)
    parts = tower_shapes(tower)
    path = written({n: w for n, w in whole.items() if n not in parts}, "model")
    given = {name.removeprefix("visual_encoder."): whole[name] for name in parts}
    # as distributed: one more block than BLIP-2 uses, and a head
    last = "blocks.3" if tower == "eva" else "transformer.resblocks.3"
    given |= {n.replace(last[:-1] + "2", last): w for n, w in given.items() if n.startswith(last[:-1] + "2.")}
    given |= {"head.weight": torch.ones(3, WIDTH)}
    torch.save(given, tmp_path / "tower.pth")
    sizes = HEADS | {"vision_config.num_hidden_layers": DEPTH}
    found = read_checkpoint(path, tower=tmp_path / "tower.pth", overrides=sizes)
    full = written(whole, "model", "full.pt")
    expected = read_checkpoint(full, overrides=HEADS)
    assert set(found.state) == set(expected.state)
    assert all(torch.equal(found.state[name], weight) for name, weight in expected.state.items())
    if tower == "eva":
        with pytest.raises(
            OacirError, match=r"missing: 'visual_encoder\.cls_token', .*: give that with --tower"
        ):
            read_checkpoint(path, overrides=HEADS)
        with pytest.raises(OacirError, match="has its own image tower"):
            read_checkpoint(full, tower=tmp_path / "tower.pth", overrides=HEADS)
        with pytest.raises(OacirError, match="holds no image tower"):
            read_checkpoint(path, tower=path, overrides=HEADS)


def test_a_file_without_a_modulator_gets_one_from_the_seed(written):
    path = written(lavis_state(), "model")
    small = {"crm_feedforward": 20, "beta_hidden": 10, "num_probe_tokens": 6}
    found = read_checkpoint(path, modulation="vector", seed=5, overrides=HEADS | small)
    assert found.config.modulation == "vector"
    fresh = random_model(found.config, 5, with_tower=False).state_dict()
    own = {name for name in fresh if name.startswith("caam.")}
    assert set(found.started) == own
    assert all(torch.equal(found.state[name], fresh[name]) for name in own)
    assert found.state["caam.probe_tokens"].shape == (1, 6, HIDDEN)
    model_of(found)


def test_a_modulator_can_be_left_out(written):
    path = written(released_state())
    found = read_checkpoint(path, modulation="fixed", fixed_beta=1.5, overrides=HEADS)
    assert (found.config.modulation, found.config.fixed_beta) == ("fixed", 1.5)
    assert not any(name.startswith("caam.") for name in found.state)
    assert {"contextual_probe_tokens", "crm_module.cls_token"} < set(found.left_out)
    model_of(found)
    with pytest.raises(OacirError, match="its CAAM is of modulation 'scalar', not 'vector'"):
        read_checkpoint(path, modulation="vector", overrides=HEADS)


def test_a_directory_of_ours_is_read_too(tmp_path, written):
    found = read_checkpoint(written(released_state()), overrides=HEADS)
    model_of(found).save_pretrained(tmp_path / "ours")
    again = read_checkpoint(tmp_path / "ours")
    assert (again.layout, again.config.to_dict()["qformer"]["num_attention_heads"]) == ("adafocal", 4)
    assert all(torch.equal(again.state[name], weight) for name, weight in found.state.items())
    with pytest.raises(
        OacirError, match=r"its config\.json says all sizes; leave overrides \['embed_dim'\] out"
    ):
        read_checkpoint(tmp_path / "ours", overrides={"embed_dim": 3})


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(OacirError, match=r"has no config\.json; give a checkpoint file or a directory"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        OacirError, match=r"holds a model of type 'bert'; can read 'blip-2' and \['adafocal', 'sprc'\]"
    ):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(OacirError, match=r"config\.json: is no configuration"):
        read_checkpoint(tmp_path)


def test_a_layout_that_the_file_cannot_have_is_refused(written):
    with pytest.raises(OacirError, match="no checkpoint of layout 'huggingface' but looks like 'released'"):
        read_checkpoint(written(released_state()), "huggingface")


@pytest.mark.parametrize("modulation", ["scalar", "vector"])
def test_golden_weights_there_and_back(golden_dir, tmp_path, modulation):
    """The release's own names and shapes: read from a file, equal to the vectors' model, back without a difference."""
    golden = Golden(golden_dir)
    state = golden.vector if modulation == "vector" else golden.scalar
    torch.save({"Blip2QformerOacirAdaFocal": state}, tmp_path / "golden.pt")
    s = golden.sizes
    heads = {
        "vision_config.num_attention_heads": s["vit_heads"],
        "qformer.num_attention_heads": s["qformer_heads"],
    }
    found = read_checkpoint(tmp_path / "golden.pt", overrides=heads | {"max_text_tokens": s["max_txt_len"]})
    expected = golden.model(modulation).state_dict()
    assert set(found.state) == set(expected)
    assert all(torch.equal(found.state[name], weight) for name, weight in expected.items())
    assert found.config.modulation == modulation
    back = to_release(found.state, found.config)
    assert {n for n in state if n not in back} == {n for n in state if n.startswith("Qformer.cls.")}
    assert all(torch.equal(weight, state[name]) for name, weight in back.items())
