"""Arrow schemas of every table that crosses a stage: the only definition of a column. A pure leaf."""

from __future__ import annotations

import pyarrow as pa

BOX = pa.list_(pa.float32())
"""A box x1, y1, x2, y2 in pixels of the upright image, half-open: four numbers. Not a fixed-size list: parquet files
with a null in one cannot be read back (apache/arrow#35692)."""

LISTING = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # "<domain>/<relative path>", never content
        pa.field("domain", pa.string(), nullable=False),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("mark", pa.string(), nullable=False),  # the store's change mark: etag or mtime
        pa.field("box", BOX),
        pa.field("mask_uri", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("attribution", pa.string()),
        # exact truth of a synthetic scene, `world.scenes.Context` (kind, place, light, …), by which diagnosis tells
        # the right context; of some released benchmarks the crop that an image is; null where nothing is known
        pa.field("context_json", pa.string()),
    ]
)
"""What a source says of its images before any is opened; sorted by domain, instance_id, image_id."""
FILES = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # relative to the version
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
"""Files that a version holds beside its tables (a rendered world's images)."""
IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # "<domain>/<relative path>", never content
        pa.field("domain", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("licence", pa.string()),
        pa.field("attribution", pa.string()),
        # train | dev | test | hidden (in no query with a known target) | reserve (a distractor); null before stage 4
        pa.field("split", pa.string()),
    ]
)
INSTANCES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("box", BOX),
        pa.field(
            "mask_uri", pa.string()
        ),  # a PNG of the upright image's size, not 0 inside (training/masks.py)
        pa.field("mask_sha256", pa.string()),
        # of the object of the source's group, which is the instance_id up to "~"; null where groups are not split
        pa.field("variant", pa.string()),
    ]
)
DESCRIPTORS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("descriptor", pa.list_(pa.float32()), nullable=False),  # unit length, one width per build
        pa.field("phash", pa.uint64(), nullable=False),
        pa.field(
            "object", pa.list_(pa.float32())
        ),  # of what the box shows; null unless variants are told by it
    ]
)
MEASURES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("brightness", pa.float32(), nullable=False),  # mean luma, 0..1
        pa.field("contrast", pa.float32(), nullable=False),  # standard deviation of luma, 0..1
        pa.field("sharpness", pa.float32(), nullable=False),  # mean absolute Laplacian of luma, 0..1
        pa.field("saturation", pa.float32(), nullable=False),  # mean HSV saturation, 0..1
        pa.field("background", pa.string(), nullable=False),  # basic colour term of most border pixels
        pa.field("aspect", pa.float32(), nullable=False),  # width / height
    ]
)
"""Measured while the image is decoded the one time; what the plain annotator writes texts from."""
PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("reference_id", pa.string(), nullable=False),
        pa.field("target_id", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
    ]
)
PROVENANCE = pa.struct(
    [
        pa.field("annotator", pa.string()),
        pa.field("model", pa.string()),
        pa.field("prompt_sha256", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("parent_id", pa.string()),
        pa.field("extra_json", pa.string()),
    ]
)
GROUPS = pa.schema(
    [
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),  # valid | reserve
        pa.field("found", pa.int32(), nullable=False),  # readable images of the instance
        pa.field("images", pa.int32(), nullable=False),  # of these, images that passed the filter
        pa.field("pairs", pa.int32(), nullable=False),
        pa.field("boxed", pa.int32(), nullable=False),  # of these, pairs whose reference has a box
    ]
)
"""What the filter made of the images of one instance."""
SPLITS = pa.schema(
    [
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | dev | test | reserve
        pa.field(
            "gallery", pa.string(), nullable=False
        ),  # dev | test: where it is a distractor if it has no query
        # of the reserve: the split that it had in a version that this one updates, and gets back when it is valid again
        pa.field("last_split", pa.string()),
    ]
)
BOXES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),  # what was looked for
        pa.field("box", BOX),  # the likeliest, in whole pixels; null: none lies in the photo
        pa.field("score", pa.float32()),  # 0..1, the detector's
        pa.field("state", pa.string(), nullable=False),  # found | review (of too low a score) | none
    ]
)
"""Boxes that a detector found in photos whose source has none; those in review are the queue for people."""
REVIEW_TASKS = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),  # hash of what is shown: pair, photos, text, box
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("reference_sha256", pa.string(), nullable=False),
        pa.field("target_sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the upright reference
        pa.field("height", pa.int32(), nullable=False),
        pa.field("text", pa.string()),  # null: a person is to write it
        pa.field("box", BOX),  # null: a person is to draw it
        pa.field("dataset", pa.string(), nullable=False),  # name/key of the version it was exported from
        # the rules that a person's text is held against
        pa.field("max_words", pa.int32(), nullable=False),
        pa.field("names", pa.list_(pa.string()), nullable=False),
        pa.field("kinds", pa.list_(pa.string()), nullable=False),
    ]
)
"""What was given to people to review."""
REVIEWS = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("person", pa.string(), nullable=False),
        pa.field("decided_at", pa.string(), nullable=False),  # ISO 8601 in UTC
        pa.field("seconds", pa.float64()),  # that it took
        pa.field("verdict", pa.string(), nullable=False),  # accept | edit | reject
        pa.field("words", pa.string()),  # the person's own about it
        pa.field("text_before", pa.string()),
        pa.field("text_after", pa.string()),  # null: rejected
        pa.field("box_before", BOX),
        pa.field("box_after", BOX),
        # what a build made of it: applied | outvoted | disagreement | stale | fault; null as it was imported
        pa.field("state", pa.string()),
    ]
)
"""Who decided what, when, and what changed; one row for each person and task."""
NEAR_DUPLICATES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # of the instance
        pa.field("other_id", pa.string(), nullable=False),  # the nearest image of another instance
        pa.field("other_instance_id", pa.string(), nullable=False),
        pa.field("other_split", pa.string(), nullable=False),
        pa.field("bits", pa.int32(), nullable=False),  # in which their perceptual hashes differ
        pa.field("rejected", pa.bool_(), nullable=False),  # it gave way: the two would lie in two splits
    ]
)
"""Images that show the same photo as an image of another instance."""
DISTRACTORS = pa.schema(
    [
        pa.field("gallery_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("rank", pa.uint64(), nullable=False),  # seeded; the lowest of a category enter first
    ]
)
QUADRUPLES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        # train | dev | test | hidden (a test server keeps the targets)
        pa.field("split", pa.string(), nullable=False),
        # Where a release names no instances: an image is its own, a query's is its primary target (hidden: reference).
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("reference_id", pa.string(), nullable=False),
        pa.field("reference_box", BOX),  # null: the benchmark anchors no object
        pa.field("reference_mask_uri", pa.string()),
        pa.field("reference_mask_sha256", pa.string()),
        pa.field("modification_text", pa.string(), nullable=False),
        # The first is the primary target; none where the split is hidden.
        pa.field("target_ids", pa.list_(pa.string()), nullable=False),
        pa.field("group_ids", pa.list_(pa.string())),  # images among which the query is also ranked by itself
        pa.field("provenance", PROVENANCE, nullable=False),
    ]
)
GALLERY = pa.schema(
    [
        pa.field("gallery_id", pa.string(), nullable=False),  # "<domain>/<split>"
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("is_distractor", pa.bool_(), nullable=False),
    ]
)
REJECTS = pa.schema(
    [
        pa.field(
            "stage", pa.string(), nullable=False
        ),  # collect | filter | ground | annotate | review | gallery
        pa.field("entity", pa.string(), nullable=False),  # images | boxes | instances | pairs | quadruples
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # one of REASONS
        pa.field("detail", pa.string()),
        pa.field("records", pa.int64()),  # how many, where one row stands for several; null = one
    ]
)
"""Every dropped record. Pairs that are too similar are one row for each reference image, its name the key: a group of
n images has n² pairs, and no table grows like that."""
PROTOCOL = pa.schema(
    [
        pa.field("rule", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),
    ]
)
"""How an imported benchmark is scored, where not as OACIRR is. A table, so that it counts for the content hash: equal
queries under another protocol are another benchmark."""
RANKINGS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("gallery_id", pa.string(), nullable=False),
        pa.field("candidate_ids", pa.list_(pa.string()), nullable=False),  # top K, best first
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("beta", pa.list_(pa.float32())),  # one value, or one per query token; null without modulator
        pa.field("target_rank", pa.int32(), nullable=False),  # 1 = best, reference removed
        pa.field("instance_rank", pa.int32(), nullable=False),  # best rank of any image of the instance
        # of every target, the primary one first; null where the benchmark asks for the primary one alone
        pa.field("target_ranks", pa.list_(pa.int32())),
        pa.field(
            "group_rank", pa.int32()
        ),  # of the primary target in the query's own group; null without groups
    ]
)

TABLES: dict[str, pa.Schema] = {
    "listing": LISTING,
    "files": FILES,
    "measures": MEASURES,
    "images": IMAGES,
    "instances": INSTANCES,
    "descriptors": DESCRIPTORS,
    "pairs": PAIRS,
    "groups": GROUPS,
    "splits": SPLITS,
    "boxes": BOXES,
    "review_tasks": REVIEW_TASKS,
    "reviews": REVIEWS,
    "near_duplicates": NEAR_DUPLICATES,
    "distractors": DISTRACTORS,
    "quadruples": QUADRUPLES,
    "gallery": GALLERY,
    "rejects": REJECTS,
    "protocol": PROTOCOL,
    "rankings": RANKINGS,
}

REASONS = frozenset(
    {
        # images, while listing: nothing says which instance it shows; what is said cannot be understood; named twice
        "no_identity", "bad_label", "duplicate_name",
        # images, while reading and decoding
        "not_a_file", "empty_file", "not_an_image", "unsupported_format", "truncated", "corrupt",
        "too_many_pixels", "too_small", "extreme_aspect", "unreadable", "duplicate_content", "bad_mask",
        # images while reading and decoding, and quadruples while annotating: not done in the time that a record has
        "timeout",
        # boxes, of images that are kept: nothing of the box lies inside the image
        "box_outside",
        # boxes that a detector found, and quadruples whose reference has only such a one: of too low a confidence
        "box_unsure",
        # images whose object shows no variant clearly, where groups are split
        "variant_unclear",
        # images and instances, while filtering
        "class_centric", "too_few_images",
        # images between filtering and annotation, and their pairs
        "near_duplicate_across_splits",
        # pairs
        "too_similar",
        # images and quadruples of a released benchmark
        "missing_file", "missing_image", "target_is_reference", "outside_protocol",
        # quadruples
        "no_box", "no_difference", "text_too_long", "text_names_instance", "no_text", "text_wrong_language",
        "text_names_image", "text_names_category", "text_repeats", "text_untrue", "text_not_separating",
        # quadruples, of a model that is asked: its answer is none, there is none, the object is not told by eye
        "bad_answer", "no_answer", "not_visual",
        # quadruples that people reviewed: refused, judged in two ways, not yet judged where a build leaves such out
        "person_rejected", "people_disagree", "people_pending",
    }
)  # fmt: skip
"""The closed vocabulary of why a record was dropped."""


def conform(table: pa.Table, name: str) -> pa.Table:
    """The table with exactly the columns and types of `TABLES[name]`; a missing nullable column becomes null.

    Raises:
        ValueError: a required column is missing or an unknown one is present.
    """
    schema = TABLES[name]
    unknown = set(table.column_names) - set(schema.names)
    missing = [f.name for f in schema if not f.nullable and f.name not in table.column_names]
    if unknown or missing:
        raise ValueError(f"table {name}: unknown columns {sorted(unknown)}, missing columns {missing}")
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
