"""A Grounding DINO or MM-Grounding-DINO of random weights, small enough to be made anew for a test."""

from __future__ import annotations

from pathlib import Path

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    "a",
    "cup",
    "thing",
    "plaything",
    "red",
    "garment",
    "car",
)


def save_tiny_detector(folder: Path, kind: str = "mm-grounding-dino", seed: int = 0) -> str:
    """Write model and processor; the folder as a path that `from_pretrained` takes."""
    import torch
    from transformers import (
        AutoModelForZeroShotObjectDetection,
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoProcessor,
        MMGroundingDinoConfig,
        SwinConfig,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    text = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    config = (MMGroundingDinoConfig if kind == "mm-grounding-dino" else GroundingDinoConfig)(
        backbone_config=backbone, text_config=text, d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_text_len=32, disable_custom_kernels=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForZeroShotObjectDetection.from_config(config).save_pretrained(folder)
    return str(folder)
