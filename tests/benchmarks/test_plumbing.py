"""The plumbing benchmark works: everything starts, every request succeeds, and the result is stored."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import plumbing, results


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_short_run_measures_both_ways_and_stores_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- plumbing:begin -->\nold\n<!-- plumbing:end -->\nafter\n")
    monkeypatch.setattr(results, "HERE", tmp_path)
    rows = plumbing.measure([1, 2], duration_s=1, warm_up_s=1)
    assert [row.jobs.connections for row in rows] == [1, 2]
    for row in rows:
        for load in (row.jobs, row.bare):
            assert load.requests > 0
            assert load.failed == 0
        assert row.p50_overhead_ms == row.jobs.p50_ms - row.bare.p50_ms
    plumbing.store(rows, 1)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert plumbing.table(rows) in page
    assert "old" not in page
    assert len(json.loads((tmp_path / "results" / "plumbing.json").read_text())["rows"]) == 2
    plumbing.store(rows, 1)
    assert (tmp_path / "README.md").read_text() == page


@pytest.mark.parametrize("name", ["plumbing", "prompts"])
def test_page_of_the_benchmarks_has_the_place_for_the_table(name: str) -> None:
    text = (results.HERE / "README.md").read_text()
    assert text.index(f"<!-- {name}:begin -->") < text.index(f"<!-- {name}:end -->")
