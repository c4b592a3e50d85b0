from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.records import LISTING, REASONS
from pipelines.sources.base import Source
from pipelines.sources.image_folder import ImageFolder, ImageFolderConfig

MANIFEST = """image_path,identity,category,source_repo,licence
toys/b/2.jpg,toys/bear,plush,maker/set,MIT
"toys/b/1, the ""first"".PNG",toys/bear,plush,maker/set,
toys/a/1.jpg,,,,
"""
BOXES = "image_path,x,y,w,h,box_source\ntoys/b/2.jpg,10,20.5,30,40,hand\n"


def source(root: Path | str, **options: Any) -> ImageFolder:
    return ImageFolder(ImageFolderConfig(root=str(root), **options))


def rows(listed: Source) -> list[dict[str, Any]]:
    return [row for table in listed.listing() for row in table.to_pylist()]


def ids(listed: Source) -> list[str]:
    return [row["image_id"] for row in rows(listed)]


def rejects(listed: Source) -> dict[str, str]:
    found = list(listed.rejects())
    assert all(r["stage"] == "collect" and r["entity"] == "images" and r["reason"] in REASONS for r in found)
    assert all(r["detail"] for r in found)
    return {r["key"]: r["reason"] for r in found}


def write(url: str, data: bytes = b"x") -> None:
    storage.write_bytes(url, data)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A real S3 server on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="oacir-photos")
    yield "s3://oacir-photos"
    server.stop()
    patch.undo()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A small collection with everything a folder may hold."""
    place = (
        str(tmp_path / "photos")
        if request.param == "local"
        else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    )
    for name in (
        "toys/b/2.jpg",
        'toys/b/1, the "first".PNG',
        "toys/a/1.jpg",
        "toys/a/deep/er/9.webp",
        "toys/lone.jpg",
    ):
        write(storage.join(place, name))
    for name in ("birds/ünïcödé 名前/100%25 #1.jpg", "masks/toys/b/2.png", ".cache/x/1.jpg"):
        write(storage.join(place, name))
    write(storage.join(place, "manifest.csv"), MANIFEST.encode("utf-8-sig"))
    write(storage.join(place, "boxes_hand.csv"), BOXES.encode())
    write(storage.join(place, "README.md"))
    return place


def test_a_folder_is_listed_in_order_with_all_it_says(root: str) -> None:
    listed = source(root)
    found = rows(listed)
    assert [(r["domain"], r["instance_id"], r["image_id"]) for r in found] == [
        ("birds", "birds/ünïcödé 名前", "birds/ünïcödé 名前/100%25 #1.jpg"),
        ("toys", "toys/a", "toys/a/1.jpg"),
        ("toys", "toys/a", "toys/a/deep/er/9.webp"),
        ("toys", "toys/bear", 'toys/b/1, the "first".PNG'),
        ("toys", "toys/bear", "toys/b/2.jpg"),
        ("toys", "toys/lone.jpg", "toys/lone.jpg"),
    ]
    bear = found[4]
    assert {k: bear[k] for k in ("category", "licence", "attribution", "box", "mask_uri", "size_bytes")} == {
        "category": "plush",
        "licence": "MIT",
        "attribution": "maker/set",
        "box": [10.0, 20.5, 40.0, 60.5],
        "mask_uri": storage.join(root, "masks/toys/b/2.png"),
        "size_bytes": 1,
    }
    assert all(storage.read_bytes(r["uri"]) == b"x" and r["mark"] for r in found)
    other = found[1]
    assert (other["category"], other["box"], other["mask_uri"], other["licence"]) == (
        "toys",
        None,
        None,
        None,
    )
    assert all(table.schema == LISTING for table in listed.listing())
    assert rejects(listed) == {}


def test_a_manifest_may_name_the_mask_and_masks_of_no_image_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "toys/a/1.jpg",
        "toys/a/2.jpg",
        "masks/toys/a/2.png",
        "masks/toys/other.png",
        "masks/toys/b.png",
    ):
        write(str(tmp_path / name))
    write(
        str(tmp_path / "manifest.csv"),
        b"image_path,mask_path\ntoys/a/1.jpg,masks/toys/other.png\ntoys/a/2.jpg,\n",
    )
    with caplog.at_level(logging.WARNING):
        found = rows(source(tmp_path))
    assert [r["mask_uri"] for r in found] == [
        str(tmp_path / "masks/toys/other.png"),
        str(tmp_path / "masks/toys/a/2.png"),
    ]
    (warning,) = [r.message for r in caplog.records if "masks belong" in r.message]
    assert "1 masks belong to no image, the first: masks/toys/b.png" in warning


def test_domains_can_be_chosen(root: str) -> None:
    assert ids(source(root, domains=["birds"])) == ["birds/ünïcödé 名前/100%25 #1.jpg"]
    with pytest.raises(OacirError, match=r"no domain cars; there are: birds, toys"):
        ids(source(root, domains=["cars", "birds"]))


def test_what_is_no_image_is_refused_with_its_reason(root: str) -> None:
    for name in (
        "toys/a/notes.txt",
        "toys/b/.hidden",
        "stray.jpg",
        "toys/b/dir.jpg/.keep",
        "toys/b/dir.jpg/2.jpg",
    ):
        write(storage.join(root, name))
    listed = source(root)
    assert rejects(listed) == {
        "stray.jpg": "unsupported_format",
        "toys/a/notes.txt": "unsupported_format",
        "toys/b/.hidden": "unsupported_format",
        "toys/b/dir.jpg": "not_a_file",
    }
    assert len(ids(listed)) == 6


def test_the_fingerprint_follows_every_file_that_is_read(root: str) -> None:
    def fingerprint(**options: Any) -> str:
        return source(root, **options).fingerprint()

    before = fingerprint()
    assert len(before) == 64
    assert fingerprint() == before
    write(storage.join(root, "README.md"), b"another text, not part of the collection")
    assert fingerprint() == before
    seen = {before, fingerprint(domains=["birds"])}
    for name, data in (
        ("toys/a/1.jpg", b"longer"),
        ("boxes_hand.csv", BOXES.replace("30", "31").encode()),
        ("manifest.csv", MANIFEST.replace("plush", "fluff").encode()),
        ("masks/toys/b/2.png", b"longer"),
        ("toys/new/1.jpg", b"x"),
        ("toys/a/notes.txt", b"x"),
    ):
        write(storage.join(root, name), data)
        seen.add(fingerprint())
    assert len(seen) == 8


def test_an_empty_folder_named_like_an_image_and_links_are_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "toys/a/empty.jpg").mkdir(parents=True)
    (tmp_path / "toys/a/gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "toys/a/1.jpg").write_bytes(b"x")
    (tmp_path / "toys/a/linked.jpg").symlink_to(tmp_path / "toys/a/1.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/toys/a/\xff.jpg")).write_bytes(b"x")
    listed = source(tmp_path)
    assert ids(listed) == ["toys/a/1.jpg", "toys/a/linked.jpg"]
    assert rejects(listed) == {
        "toys/a/empty.jpg": "not_a_file",
        "toys/a/gone.jpg": "not_a_file",
        "toys/a/\\udcff.jpg": "unreadable",
    }
    assert len(listed.fingerprint()) == 64


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes.csv", "image_path,x,y,w\n", r"boxes\.csv: no column h; needed are"),
        ("boxes.csv", "", r"boxes\.csv: no column image_path"),
        (
            "boxes.csv",
            "image_path,x,y,w,h\ntoys/a/1.jpg,1,2,three,4\n",
            r"line 2: .*'three'; allowed are finite",
        ),
        (
            "boxes.csv",
            "image_path,x,y,w,h\ntoys/a/1.jpg,1,2,0,4\n",
            r"line 2: box 1, 2, 0, 4; allowed are finite",
        ),
        ("boxes.csv", "image_path,x,y,w,h\ntoys/a/1.jpg,1,2,nan,4\n", r"line 2: box 1, 2, nan, 4"),
        ("boxes.csv", "image_path,x,y,w,h\ntoys/a/1.jpg,1,2\n", r"line 2: 5 columns expected"),
        ("boxes.csv", "image_path,x,y,w,h\ntoys/a/1.jpg,1,2,3,4,5\n", r"line 2: 5 columns expected"),
        (
            "boxes.csv",
            "image_path,x,y,w,h\n" + "toys/a/1.jpg,1,2,3,4\n" * 2,
            r"line 3: a second box for toys/a/1\.jpg",
        ),
        (
            "boxes.csv",
            "image_path,x,y,w,h\ntoys/b/2.jpg,1,2,3,4\n",
            r"boxes_hand\.csv, line 2: a second box for",
        ),
        ("boxes.csv", 'image_path,x,y,w,h\n"toys/a/1.jpg,1,2,3,4\n', r"not valid CSV"),
        ("manifest.csv", "path\n", r"manifest\.csv: no column image_path"),
        ("manifest.csv", "image_path\n" + "toys/a/1.jpg\n" * 2, r"line 3: a second row for toys/a/1\.jpg"),
        (
            "manifest.csv",
            "image_path,identity\ntoys/a/1.jpg,birds/x\n",
            r"line 2: identity 'birds/x'; allowed is",
        ),
        ("manifest.csv", b"image_path\n\xff\xfe\n", r"not UTF-8"),
        (
            "manifest.csv",
            "image_path,mask_path\ntoys/a/1.jpg,masks/toys/none.png\n",
            r"line 2: mask_path 'masks/toys/none\.png' names no file below masks/toys/; correct or empty it",
        ),
    ],
)
def test_a_row_that_cannot_be_understood_is_one_clear_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    for image in ("toys/a/1.jpg", "toys/b/2.jpg"):
        write(str(tmp_path / image))
    write(str(tmp_path / "boxes_hand.csv"), BOXES.encode())
    write(str(tmp_path / name), text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OacirError, match=message) as caught:
        ids(source(tmp_path))
    assert "\n" not in str(caught.value)


def test_rows_of_missing_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(str(tmp_path / "toys/a/1.jpg"))
    write(str(tmp_path / "birds/a/1.jpg"))
    text = "image_path,x,y,w,h\ntoys/a/1.jpg,1,2,3,4\ntoys/x.jpg,1,2,3,4\ntoys/y.jpg,1,2,3,4\nbirds/a/1.jpg,0,0,1,1\n"
    write(str(tmp_path / "boxes.csv"), text.encode())
    with caplog.at_level(logging.WARNING):
        assert rows(source(tmp_path, domains=["toys"]))[0]["box"] == [1.0, 2.0, 4.0, 6.0]
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == [
        "2 rows name no image of the folder, the first: toys/x.jpg"
    ]


def test_photos_without_a_folder_for_their_domain_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("mug/1.jpg", "mug/2.jpg", "cup/1.jpg", "toys/a/1.jpg", "toys/a/2.jpg"):
        write(str(tmp_path / name))
    with caplog.at_level(logging.WARNING):
        rows(source(tmp_path))
        assert "3 of 5 images lie directly in a domain" in caplog.text
        caplog.clear()
        write(str(tmp_path / "toys/a/3.jpg"))
        rows(source(tmp_path))
    assert caplog.text == ""


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(OacirError, match=r"photos: no such folder; the layout is <root>/<domain>"):
        ids(source(tmp_path / "photos"))


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: write(str(p / "1.jpg"))])
def test_a_folder_without_domains_says_what_the_layout_is(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "photos")
    with pytest.raises(
        OacirError, match=r"no domain folders; there are: none; the layout is <root>/<domain>"
    ):
        ids(source(tmp_path / "photos"))


def test_a_long_listing_comes_in_pieces_sorted_over_all(tmp_path: Path) -> None:
    for i in range(4100):
        path = tmp_path / f"toys/{i % 7}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listed = source(tmp_path)
    assert [len(t) for t in listed.listing()] == [4096, 4]
    keys = [(r["domain"], r["instance_id"], r["image_id"]) for r in rows(listed)]
    assert keys == sorted(keys)


def test_the_real_photos(shared_dir: Path) -> None:
    found = rows(source(shared_dir / "data" / "photos"))
    assert len(found) == 1240
    assert sum(r["box"] is not None for r in found) == 248
    assert sum(r["mask_uri"] is not None for r in found) == 140
    assert {
        d: len({r["instance_id"] for r in found if r["domain"] == d}) for d in ("subjects", "nyala", "video")
    } == {
        "subjects": 15,
        "nyala": 40,
        "video": 10,
    }
    assert all(r["attribution"] for r in found)


def test_nasty_files_mixed_in_are_all_accounted_for(shared_dir: Path, tmp_path: Path) -> None:
    nasty = shared_dir / "data" / "nasty"
    shutil.copytree(nasty, tmp_path / "toys" / "nasty")
    expected = set(json.loads((nasty / "expected.json").read_text())["files"])
    listed = source(tmp_path)
    refused = rejects(listed)
    names = [i.removeprefix("toys/nasty/") for i in ids(listed)]
    assert refused == {
        "toys/nasty/directory.jpg": "not_a_file",
        "toys/nasty/expected.json": "unsupported_format",
    }
    assert sorted(names) == sorted(expected - {"directory.jpg"})
