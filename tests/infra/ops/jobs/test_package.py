from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from infra.base.errors import OacirError, RecipeError
from infra.ops.jobs.package import CODE, MIB, Package, collect, require_limit, write
from infra.ops.jobs.request import CODE_ROOT

KEY = "-----BEGIN RSA " + "PRIVATE KEY-----"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A small checkout: every part of the code, and what must stay."""
    root = tmp_path / "code"
    for part in CODE:
        (root / part / "__pycache__").mkdir(parents=True)
        (root / part / "code.py").write_text(f"# {part}\n")
        (root / part / "__pycache__" / "code.pyc").write_bytes(b"compiled")
    for stays in (".git/config", "oacir-data/big.bin", "tests/test_x.py"):
        (root / stays).parent.mkdir(parents=True, exist_ok=True)
        (root / stays).write_text("stays")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "work"
    found.mkdir()
    return found


def test_the_code_alone_goes_along(code: Path, folder: Path) -> None:
    package = collect(code, (), folder)
    assert sorted(package.files) == [f"{part}/code.py" for part in sorted(CODE)]
    assert sorted(package.left_out) == ["cache"]
    assert len(package.left_out["cache"]) == len(CODE)


def test_secrets_caches_and_links_in_a_named_folder_stay_and_are_told(code: Path, folder: Path) -> None:
    inner = folder / "extra"
    (inner / ".aws").mkdir(parents=True)
    (inner / ".aws" / "config").write_text("region")
    (inner / "boxes.csv").write_text("a,b")
    for name in (".env", "prod.env", "id_rsa", "server.PEM", "auth_token"):
        (inner / name).write_text("s3cret")
    (folder / "outside.txt").write_text("x")
    (inner / "same.csv").symlink_to(inner / "boxes.csv")
    (inner / "escape").symlink_to(code.parent / "elsewhere.txt")
    (code.parent / "elsewhere.txt").write_text("not yours")
    package = collect(code, ("extra",), folder)
    assert sorted(name for name in package.files if name.startswith("extra")) == [
        "extra/boxes.csv",
        "extra/same.csv",
    ]
    assert set(package.left_out["secret"]) == {
        "extra/.aws", "extra/.env", "extra/prod.env", "extra/id_rsa", "extra/server.PEM", "extra/auth_token",
    }  # fmt: skip
    assert package.left_out["link"] == ("extra/escape",)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../code/infra", "leads out of the working directory"),
        ("/etc/hosts", "leads out of the working directory"),
        ("absent.csv", "there is no such file"),
        ("infra", "lies where this package's own code lies"),
        ("way_out", "leads out of the working directory"),
    ],
)
def test_what_may_not_be_named(code: Path, folder: Path, name: str, says: str) -> None:
    (folder / "infra").mkdir()
    (folder / "way_out").symlink_to(code)
    with pytest.raises(RecipeError, match=says):
        collect(code, (name,), folder)


@pytest.mark.parametrize("text", [KEY, "key = AKIA" + "ABCDEFGHIJKLMNOP", "hf_" + "a" * 34])
def test_a_key_in_a_file_is_refused_whatever_its_name(code: Path, folder: Path, text: str) -> None:
    (folder / "notes.txt").write_text(f"see {text} here")
    with pytest.raises(OacirError, match=r"notes\.txt: holds a private key or an access key"):
        collect(code, ("notes.txt",), folder)


def test_the_limit_names_the_largest(code: Path, folder: Path) -> None:
    for name, size in (("a.bin", 3), ("b.bin", 2), ("c.bin", 1)):
        (folder / name).write_bytes(b"0" * (size * MIB))
    package = collect(code, ("a.bin", "b.bin", "c.bin"), folder)
    require_limit(package, 7)
    with pytest.raises(
        OacirError, match=r"6\.0 MiB would go along, .* a\.bin 3\.0 MiB, b\.bin 2\.0 MiB, c\.bin 1"
    ):
        require_limit(package, 5.9)


def test_equal_files_make_an_equal_archive_and_hash(code: Path, folder: Path, tmp_path: Path) -> None:
    first = collect(code, (), folder)
    write(first, tmp_path / "1.zip")
    for file in first.files.values():
        file.touch()
    write(collect(code, (), folder), tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    before = first.content_hash()
    assert Package(first.files, made={"recipe.yaml": b"x"}).content_hash() == before
    (code / "infra" / "code.py").write_text("# infra!\n")
    assert collect(code, (), folder).content_hash() != before
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.read("infra/code.py") == b"# infra\n"


def test_this_package_is_small_and_whole() -> None:
    package = collect(CODE_ROOT, (), CODE_ROOT)
    assert package.size_bytes < 8 * MIB
    assert {"infra/cli.py", "training/recipes/paper.yaml", "infra/base/templates/page.css"} <= set(
        package.files
    )
    assert not [name for name in package.files if name.endswith(".pyc")]
    modules = {p.relative_to(CODE_ROOT).as_posix() for part in CODE for p in (CODE_ROOT / part).rglob("*.py")}
    assert modules <= set(package.files)  # infra/base/secrets.py is a module, not a secret
    assert set(package.left_out) <= {"cache"}
