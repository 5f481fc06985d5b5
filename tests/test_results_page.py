"""The page of results shows the numbers of docs/results.json."""

import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_shows_the_numbers_of_the_file():
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    for part in ("sequences", "validation"):
        for name, one in results[part]["trackers"].items():
            low, high = one["AUC_interval"]
            shown = [f"{one['AUC']:.2f}", f"{low:.2f} to {high:.2f}", f"{one['P']:.2f}", f"{one['P_norm']:.2f}"]
            assert f"| {name} | {' | '.join(shown)} |" in page
            videos = list(one["AUC_by_video"].values())
            assert len(videos) == results[part]["videos"] and low < one["AUC"] < high
            assert abs(sum(videos) / len(videos) - one["AUC"]) < 0.02
    for name, figures in results["realtime"]["trackers"].items():
        assert f"| {name} | {' | '.join(f'{value:.2f}' for value in figures.values())} |" in page
