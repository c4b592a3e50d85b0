"""The mutation proof itself is too slow for every test run; that its snippets still fit the sources is not."""

from __future__ import annotations

import pytest

from tests.mutations import MUTATIONS, ROOT, Failure, Mutation, Outcome, apply, verdict


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.mistake)
def test_every_mistake_still_applies(mutation):
    planted = apply(mutation, ROOT)
    assert planted != (ROOT / mutation.file).read_text()
    compile(planted, mutation.file, "exec")
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutation.tests)


def test_names_are_unique():
    assert len({m.mistake for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("content", ["a = 1\n", "x = 1\nx = 1\n"])
def test_a_stale_mistake_says_so(tmp_path, content):
    (tmp_path / "f.py").write_text(content)
    with pytest.raises(ValueError, match=r"'lost' is stale: its text is \d times in f.py"):
        apply(Mutation("lost", "f.py", "x = 1", "x = 2"), tmp_path)


def test_only_a_failed_assertion_catches():
    assert verdict(Outcome(0, [], 1.0)) == "SURVIVED"
    assert verdict(Outcome(1, [Failure("a.py::t", "TypeError")], 1.0)) == "BROKE: TypeError"
    assert verdict(Outcome(2, [], 1.0)) == "BROKE: no test ran"
    failures = [Failure("a/b.py::t", "TypeError"), Failure("a/b.py::u", "AssertionError")]
    assert verdict(Outcome(1, failures, 1.0)) == "b.py::u"
