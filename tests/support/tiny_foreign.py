"""CLIP, SigLIP, BLIP-2 and Qwen2-VL of random weights, small enough to be made anew for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "the",
    "in",
    "on",
    "with",
    "of",
    "this",
    "same",
    "keep",
    "object",
    "red",
    "box",
    "car",
    "product",
    "place",
)
SIDE, PATCH, WIDTH = 28, 14, 16
QWEN_WORDS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_clip(folder: Path, seed: int = 0) -> str:
    """Write model and processor; the folder as a path that `from_pretrained` takes."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = _letters(
        ["<pad>", "<|startoftext|>", "<|endoftext|>"], pad="<pad>", eos="<|endoftext|>", length=77
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(images, tokens).save_pretrained(folder)
    text = _text(len(tokens)) | {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    _save(CLIPModel, CLIPConfig(text_config=text, vision_config=_vision(), projection_dim=8), folder, seed)
    return str(folder)


def save_tiny_siglip(folder: Path, seed: int = 0) -> str:
    """The same of SigLIP."""
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokens = _letters(["<pad>", "</s>"], pad="<pad>", eos="</s>", length=32)
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    SiglipProcessor(images, tokens).save_pretrained(folder)
    text = _text(len(tokens)) | {"max_position_embeddings": 32, "projection_size": WIDTH}
    _save(SiglipModel, SiglipConfig(text_config=text, vision_config=_vision()), folder, seed)
    return str(folder)


def save_tiny_blip2(folder: Path, seed: int = 0) -> str:
    """The same of BLIP-2 as it is trained for retrieval."""
    from transformers import BertTokenizer, Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokens = BertTokenizer(str(folder / "vocab.txt"))
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    Blip2Processor(images, tokens, num_query_tokens=4).save_pretrained(folder)
    qformer = _text(len(tokens)) | {"encoder_hidden_size": WIDTH, "use_qformer_text_input": True}
    config = Blip2Config(
        vision_config=_vision(), qformer_config=qformer, num_query_tokens=4, image_text_hidden_size=8
    )
    _save(Blip2ForImageTextRetrieval, config, folder, seed)
    return str(folder)


def save_tiny_qwen(folder: Path, seed: int = 0) -> str:
    """The same of Qwen2-VL, whose last hidden state is the vector."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokens = _letters(QWEN_WORDS, pad="<|endoftext|>", eos="<|im_end|>", length=512)
    tokens.chat_template = CHAT
    tokens.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
    ).save_pretrained(folder)
    text = {
        "vocab_size": len(tokens), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 1,
        "embed_dim": WIDTH,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": PATCH,
        "mlp_ratio": 1,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokens.convert_tokens_to_ids("<|image_pad|>"),
        vision_start_token_id=tokens.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokens.convert_tokens_to_ids("<|vision_end|>"),
    )
    _save(Qwen2VLForConditionalGeneration, config, folder, seed)
    return str(folder)


TINY = {
    "clip": save_tiny_clip,
    "siglip": save_tiny_siglip,
    "blip2": save_tiny_blip2,
    "qwen_vl": save_tiny_qwen,
}


def _text(words: int) -> dict[str, Any]:
    return {
        "vocab_size": words, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip


def _vision() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": PATCH,
    }  # fmt: skip


def _letters(specials: Sequence[str], *, pad: str, eos: str, length: int) -> Any:
    """A tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(BPE({token: n for n, token in enumerate([*specials, *letters])}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    if eos != "<|im_end|>":
        tokens.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, list(specials).index(eos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token=pad, eos_token=eos, unk_token=pad, model_max_length=length,
        additional_special_tokens=[s for s in specials if s not in (pad, eos)],
    )  # fmt: skip


def _save(kind: Any, config: Any, folder: Path, seed: int) -> None:
    """Write a model whose every weight is drawn: some that transformers starts are so near zero that all is equal."""
    import torch

    model = kind(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        for name, weight in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                weight.fill_(1.0)
    model.save_pretrained(folder)
