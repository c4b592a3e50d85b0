from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from photo_sources import picture, reasons, refused, rows, tar, write

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources import scans
from pipelines.sources.base import Source
from pipelines.sources.webdataset import WebDataset, WebDatasetConfig

OPTIONS: dict[str, Any] = {
    "instance": "json.product.id",
    "category": "cls",
    "domain": "product",
    "box": "json.box",
    "licence": "json.licence",
    "attribution": "txt",
}


def source(root: str | Path, **options: Any) -> WebDataset:
    return WebDataset(WebDatasetConfig(root=str(root), **(OPTIONS | options)))


def said(number: int, **more: Any) -> bytes:
    return json.dumps({"product": {"id": number}} | more).encode()


def image(name: str, number: int = 7, **more: Any) -> list[tuple[str, bytes]]:
    return [(f"{name}.jpg", picture(number)), (f"{name}.json", said(number, **more))]


def ids(found: Source) -> list[str]:
    return [row["image_id"] for row in rows(found)]


def test_samples_of_all_shards_are_listed_where_they_lie(place: str) -> None:
    one = picture(1)
    first = [
        ("./a/0001.jpg", one),
        ("./a/0001.json", said(5, box=[1, 2, 3, 4], licence=" MIT ")),
        ("./a/0001.cls", b"mug\n"),
        ("./a/0001.txt", "Zoë".encode()),
        ("./a/0002.json", said(5)),  # fields may come before their image
        ("./a/0002.png", picture(2, kind="PNG")),
        ("./a/0002.npy", b"not asked for"),
    ]
    write(
        place, {"train/000000.tar": tar(first), "train/000001.tar": tar(image("0001", 3)), "README.md": "x"}
    )
    found = rows(source(place))
    assert [(r["instance_id"], r["image_id"], r["category"]) for r in found] == [
        ("product/3", "product/train/000001/0001.jpg", "product"),
        ("product/5", "product/train/000000/a/0001.jpg", "mug"),
        ("product/5", "product/train/000000/a/0002.png", "product"),
    ]
    assert [storage.read_bytes(r["uri"]) for r in found] == [picture(3), one, picture(2, kind="PNG")]
    assert {k: found[1][k] for k in ("box", "licence", "attribution", "size_bytes", "mask_uri")} == {
        "box": [1.0, 2.0, 3.0, 4.0],
        "licence": "MIT",
        "attribution": "Zoë",
        "size_bytes": len(one),
        "mask_uri": None,
    }
    assert found[0]["mark"] != found[1]["mark"]
    assert found[1]["mark"] == found[2]["mark"]
    assert refused(source(place)) == {}
    assert ids(source(place, shards="train/000001*")) == ["product/train/000001/0001.jpg"]


def test_what_makes_no_image_is_refused_with_its_reason(tmp_path: Path) -> None:
    def bad(name: str, text: bytes) -> list[tuple[str, bytes]]:
        return [(f"{name}.jpg", b"x"), (f"{name}.json", text)]

    link, hard, pipe = (tarfile.TarInfo(n) for n in ("link.jpg", "hard.jpg", "pipe.jpg"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "good.jpg"
    pipe.type = tarfile.FIFOTYPE
    folder = tarfile.TarInfo("folder.jpg")
    folder.type = tarfile.DIRTYPE
    members = [
        *image("good"),
        *image("good"),
        ("lonely.jpg", b"x"),
        ("textonly.json", said(1)),
        ("textonly.npy", b"x"),
        ("README", b"x"),
        ("._0001.jpg", b"x"),
        *bad("broken", b'{"product": '),
        *bad("deep", b"[" * 100_000),
        *bad("latin", b'{"product": {"id": "\xff"}}'),
        *bad("surrogate", rb'{"product": {"id": "\ud800"}}'),
        *bad("listed", b'{"product": {"id": [1]}}'),
        *bad("empty", b'{"product": {"id": "  "}}'),
        *bad("notdict", b'{"product": 5}'),
        *bad("box3", said(1, box=[1, 2, 3])),
        *bad("boxnan", b'{"product": {"id": 1}, "box": [1, 2, NaN, 4]}'),
        *bad("boxhuge", b'{"product": {"id": 1}, "box": [1, 2, 1' + b"0" * 400 + b", 4]}"),
        *bad("boxflat", said(1, box=[1, 2, 1, 4])),
    ]
    write(str(tmp_path), {"s.tar": tar(members, link, hard, pipe, folder)})
    found = source(tmp_path)
    assert ids(found) == ["product/s/good.jpg"]
    labelled = ("broken", "deep", "latin", "surrogate", "listed", "box3", "boxnan", "boxhuge", "boxflat")
    assert reasons(found) == {
        "s/good.jpg": "duplicate_name",
        "s/lonely.jpg": "no_identity",
        "s/textonly": "unsupported_format",
        "s/README": "unsupported_format",
        "s/._0001.jpg": "unsupported_format",
        **{f"s/{name}.jpg": "bad_label" for name in labelled},
        "s/empty.jpg": "no_identity",
        "s/notdict.jpg": "no_identity",
        "s/link.jpg": "not_a_file",
        "s/hard.jpg": "not_a_file",
        "s/pipe.jpg": "not_a_file",
    }
    assert refused(found)["s/boxflat.jpg"][1].startswith("json.box: [1, 2, 1, 4]; allowed are four finite")


def test_names_that_climb_out_of_the_archive_do_no_harm(tmp_path: Path) -> None:
    names = ("../../evil", "/etc/evil", "a/../../evil", "a//b", "line\nfeed", "ok")
    labels = [("x", b'{"product": {"id": "../../up"}}'), ("y", b'{"product": {"id": ".."}}')]
    members = [m for name in names for m in image(name)]
    members += [m for name, text in labels for m in ((f"{name}.jpg", b"x"), (f"{name}.json", text))]
    write(str(tmp_path / "in"), {"s.tar": tar(members)})
    found = rows(listed := source(tmp_path / "in"))
    assert [(r["instance_id"], r["image_id"]) for r in found] == [
        ("product/..%2F..%2Fup", "product/s/x.jpg"),
        ("product/7", "product/s/ok.jpg"),
    ]
    assert list(reasons(listed).values()) == ["bad_label"] * 6
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "s.tar"]


@pytest.mark.parametrize(
    ("cut", "kept", "reason", "detail"),
    [
        (lambda whole, ends: whole[: ends[1]], 2, None, ""),  # without the end mark: as some writers leave it
        (lambda whole, ends: whole[: ends[1] + 520], 2, "truncated", "the shard ends inside it, at byte "),
        (lambda whole, ends: whole[: ends[1] + 600], 2, "truncated", "unexpected end of data"),
        (lambda whole, ends: whole[: ends[1] + 100], 2, "truncated", "inside a header"),
        (
            lambda whole, ends: whole[: ends[0]] + b"\xaa" * 512 + whole[ends[0] :],
            1,
            "corrupt",
            "a damaged header",
        ),
        (lambda whole, ends: whole + whole, 3, "corrupt", "more data after the end mark"),
        (lambda whole, ends: b"\0" * 100, 0, "truncated", "truncated header"),
        (lambda whole, ends: b"no tar" * 200, 0, "corrupt", "invalid header"),
        (lambda whole, ends: b"", 0, "empty_file", "the shard has no bytes"),
        (lambda whole, ends: gzip.compress(whole), 0, "unsupported_format", "compressed content"),
    ],
)
def test_a_damaged_shard_is_accounted_for_and_what_lies_before_is_kept(
    tmp_path: Path, cut: Any, kept: int, reason: str | None, detail: str
) -> None:
    members = [("0.json", said(0)), ("0.jpg", picture(0)), ("1.json", said(1)), ("1.jpg", picture(1))]
    members += [("2.json", said(2)), ("2.jpg", picture(2))]
    whole = tar(members)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        ends = [m.offset for m in archive.getmembers() if m.name in ("1.json", "2.json")]
    write(str(tmp_path), {"damaged.tar": cut(whole, ends), "whole.tar": tar(image("9"))})
    found = source(tmp_path)
    assert ids(found) == [*(f"product/damaged/{n}.jpg" for n in range(kept)), "product/whole/9.jpg"]
    verdicts = refused(found)
    if reason is None:
        assert verdicts == {}
        return
    assert {r for r, _ in verdicts.values()} == {reason}
    assert any(detail in d for _, d in verdicts.values())


def test_a_cut_inside_an_image_names_the_image(tmp_path: Path) -> None:
    whole = tar(
        [("0.json", said(0)), ("0.jpg", picture(0)), ("1.json", said(1)), ("1.jpg", picture(1, side=200))]
    )
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        last = archive.getmember("1.jpg")
    write(str(tmp_path), {"s.tar": whole[: last.offset_data + 700]})
    found = source(tmp_path)
    assert ids(found) == ["product/s/0.jpg"]
    assert reasons(found) == {"s/1.jpg": "truncated"}


def test_compressed_shards_and_a_folder_without_shards_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        OacirError, match=r"no shard \*\.tar; the layout of webdataset is <root>/<shard>\.tar with"
    ):
        rows(source(tmp_path))
    write(str(tmp_path), {"a.tar": tar(image("0")), "b.TAR.gz": b"x", "c.tgz": b"x"})
    with pytest.raises(
        OacirError, match=r"2 compressed shards, the first: b\.TAR\.gz; .*unpack the shards"
    ) as caught:
        source(tmp_path).fingerprint()
    assert "\n" not in str(caught.value)


def test_domains_images_and_box_forms_are_options(tmp_path: Path) -> None:
    members = [
        ("0.input.jpg", picture(0)),
        ("0.mask.png", picture(1)),
        ("0.meta.json", b'{"who": "a/b", "area": [10, 20, 5, 6], "kind": "car"}'),
        ("1.input.jpg", picture(2)),
        ("1.meta.json", b'{"who": "a%2Fb", "area": null, "kind": "a/b"}'),
        ("2.input.jpg", picture(3)),
        ("2.meta.json", b'{"who": 2.0}'),
    ]
    write(str(tmp_path), {"s.tar": tar(members)})
    config = WebDatasetConfig(
        root=str(tmp_path),
        instance="meta.json.who",
        domain="things",
        domain_field="meta.json.kind",
        box="meta.json.area",
        box_format="xywh",
        images=["input.jpg"],
    )
    found = rows(listed := WebDataset(config))
    assert [(r["domain"], r["instance_id"], r["category"], r["box"]) for r in found] == [
        ("car", "car/a%2Fb", "car", [10.0, 20.0, 15.0, 26.0]),
        ("things", "things/2", "things", None),
    ]
    assert refused(listed) == {
        "s/1.input.jpg": ("bad_label", "meta.json.kind: domain 'a/b'; a domain holds no /"),
    }


def test_the_fingerprint_follows_the_shards_and_nothing_else(tmp_path: Path) -> None:
    write(str(tmp_path), {"a.tar": tar(image("0")), "notes.txt": "x"})
    before = source(tmp_path).fingerprint()
    write(str(tmp_path), {"notes.txt": "yz"})
    assert source(tmp_path).fingerprint() == before
    write(str(tmp_path), {"b.tar": tar(image("0"))})
    more = source(tmp_path).fingerprint()
    assert more != before
    write(str(tmp_path), {"b.tar": tar(image("0") + image("1"))})
    assert len({before, more, source(tmp_path).fingerprint()}) == 3


def test_only_headers_and_labels_are_read_while_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [m for n in range(40) for m in ((f"{n}.json", said(n)), (f"{n}.jpg", bytes(200_000)))]
    write(str(tmp_path), {"s.tar": tar(members)})
    count = 0
    filesystem, _ = storage.filesystem(str(tmp_path))

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal count
            got = super().readinto(buffer)
            count += got
            return got

    def opened(path: str, *_: object, **__: object) -> Any:
        return io.BufferedReader(Counting(path))

    monkeypatch.setattr(filesystem, "open", opened)
    assert len(ids(source(tmp_path))) == 40
    assert count < 40 * 40_000


@pytest.mark.ray
def test_many_shards_are_scanned_by_ray_with_the_same_outcome(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {f"{n}.tar": tar([m for i in range(3) for m in image(f"{i}", 10 * n + i)]) for n in range(10)}
    write(str(tmp_path), {**shards, "x.tar": b"no tar" * 200})
    streamed = rows(source(tmp_path)), reasons(source(tmp_path))
    monkeypatch.setattr(scans, "DONE_HERE", 100)
    assert (rows(source(tmp_path)), reasons(source(tmp_path))) == streamed
    assert len(streamed[0]) == 30
    assert streamed[1] == {"x.tar": "corrupt"}
