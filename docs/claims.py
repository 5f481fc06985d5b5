"""docs/paper.md: each claim of the paper beside our figure, from committed results of `ostrack-fast paper ... --json`.

    python docs/claims.py

Results lie in docs/paper, a file of each command; a test fails where the page is not what they say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ostrack_fast.files import write_text

DOCS = Path(__file__).parent
Results = dict[str, dict[str, Any]]

_TRACK = "--videos videos/ --pairs {pairs}"
COMMANDS = {
    "table3": "ostrack-fast paper table3 --dtype float32",
    "table4": f"ostrack-fast paper table4 --start none --start DINOv2-ViT-S=vits14.npz {_TRACK}",
    "table5": f"ostrack-fast paper table5 --backbone vits14.npz --validation held_out/ {_TRACK}",
    "ablations": f"ostrack-fast paper ablations --train --backbone vits14.npz {_TRACK} --frames 50",
    "figures": "ostrack-fast paper figures docs/paper --results bench/results/amd-epyc-zen3-2cores-peers-track.json "
    "--two-stream runs/paper/swintrack-aligned/weights.safetensors --network swintrack-aligned",
}

_THERE = dict.fromkeys(("table5", "ablations"), " with runs and results that lay there from the command before it")


class Claim(NamedTuple):
    """A row of the page: what the paper says, its figure, ours, the command, and why they differ."""

    claim: str
    paper: str
    ours: str
    command: str
    why: str


def read(folder: Path) -> Results:
    """The results of every command, by its name."""
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in COMMANDS}


def claims(results: Results) -> list[Claim]:
    """All claims, in the paper's order."""
    costs = {row["preset"]: row for row in results["table3"]["rows"]}
    starts = {row["start"]: row for row in results["table4"]["rows"]}
    streams = {row["network"]: row for row in results["table5"]["costs"]}
    trained = {row["network"]: row for row in results["table5"]["trained"]}
    options = results["ablations"]["rows"]
    pairs = trained["ostrack"]["pairs"]
    return [
        Claim(
            "OSTrack-256 and -384 reach state-of-the-art accuracy (Tables 1 and 2)",
            "AO 71.0 and 73.7 on GOT-10k; AUC 69.1 and 71.1 on LaSOT, 83.1 and 83.9 on TrackingNet",
            "not measured",
            "`ostrack-fast evaluate --benchmark got10k`, `ostrack-fast score`",
            "needs the published weights and data sets; with the same weights the network equals the published code to "
            "1e-9 in float64",
        ),
        Claim(
            "identity and relative position embeddings bring no significant gain (section 3.1)",
            "no figures",
            _list(f"{row['title']} {row['auc']:.1f}" for row in options if row["group"].startswith("embeddings"))
            or "not trained yet",
            "`paper ablations --train`",
            _small(pairs),
        ),
        Claim(
            "elimination saves a quarter of the MACs (Table 3)",
            "29.0 to 21.5 G at 256, 65.3 to 48.3 G at 384",
            _list(
                f"{_macs(costs[size])} to {_macs(costs[f'{size}_ce'])} G at {size[-3:]}"
                for size in ("ostrack_256", "ostrack_384")
            ),
            "`paper table3`",
            "equal; with the products of attention, which the paper leaves out, the network costs more",
        ),
        Claim(
            "elimination makes inference faster (Table 3)",
            "1.13 times at 256, 1.40 times at 384",
            _list(
                f"{costs[f'{size}_ce']['fps'] / costs[size]['fps']:.2f} times at {size[-3:]}"
                for size in ("ostrack_256", "ostrack_384")
            ),
            "`paper table3`",
            "the engine leaves out the queries of eliminated candidates, too, and a processor's time follows the MACs",
        ),
        Claim(
            "MAE pretraining is best, none by far the worst (Table 4)",
            "LaSOT AUC 60.4 (none), 66.1 (ImageNet-1k), 66.9 (ImageNet-21k), 68.7 (MAE)",
            _list(f"{row['auc']:.1f} ({name})" for name, row in starts.items()),
            "`paper table4`",
            f"{_small(starts['none']['pairs'])}; only one pretrained ViT was at "
            "hand, and its first three blocks of twelve hardly help on their own",
        ),
        Claim(
            "one stream is faster than two (Table 5)",
            "93.1 frames/s against 52.9 (STARK-aligned) and 67.5 (SwinTrack-aligned)",
            f"{streams['ostrack']['fps']:.2f} (engine {streams['ostrack']['engine_fps']:.2f}) against "
            f"{streams['stark-aligned']['fps']:.2f} and {streams['swintrack-aligned']['fps']:.2f}",
            "`paper table5`",
            "two streams keep the template's features, one stream computes them with every frame, and a processor's "
            "time follows the MACs; a GPU's was not measured ([more](#table-5-one-stream-against-two))",
        ),
        Claim(
            "one stream converges faster (Table 5)",
            "18 million pairs against 30 and 39.3 million",
            f"IoU of held-out pairs after {pairs:,} pairs: "
            + _list(f"{row['curve'][-1][1]:.3f} ({name})" for name, row in trained.items()),
            "`paper table5 --videos --validation`",
            _small(pairs),
        ),
        Claim(
            "the template's centre, a keep ratio of 0.7 and blocks 3, 6, 9 are good choices (supplement)",
            "no figures at hand",
            _list(f"{row['group']} {row['title']}: {row['auc']:.1f}" for row in options if "embed" not in row["group"]),
            "`paper ablations`",
            "`small` (the weights before those that ship now) was trained with its own choice, and options were "
            "changed without training; videos are few",
        ),
        Claim(
            "attention finds the target, elimination leaves it, and features single it out (Figures 1, 4, 5, 6)",
            "pictures",
            "[below](#figures)",
            "`paper figures`",
            "the shipped `small` on the shipped video; Figure 6's two-stream network is the SwinTrack-aligned of "
            f"Table 5 here, trained on {trained['swintrack-aligned']['pairs']:,} pairs",
        ),
    ]


def _small(pairs: int) -> str:
    return (
        f"three blocks of a ViT-S at 128 pixels, once each, on {pairs:,} pairs: they hardly track yet, and small "
        "differences are chance; the paper's took millions of pairs of a ViT-B"
    )


def page(results: Results) -> str:
    """The whole page."""
    lines = [
        "# The paper's claims",
        "",
        "Each claim of the paper ([arXiv:2203.11991](https://arxiv.org/abs/2203.11991)) with its figure, ours, and why",
        "they differ. `python docs/claims.py` writes this page from the results in `docs/paper`, those of the commands",
        "below on the machine that each table names. Ours are in front, the paper's in brackets. Where training takes",
        "part, the size is said: it is small, and the same command with more `--pairs` continues from there.",
        "",
        "| claim | paper | ours | command | why they differ |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(claim)} |" for claim in claims(results)),
    ]
    pairs = dict.fromkeys(COMMANDS, results["table5"]["trained"][0]["pairs"])
    pairs["table4"] = results["table4"]["rows"][0]["pairs"]
    for name, found in results.items():
        title, _, brackets = found["title"].rstrip(")").partition(" (")
        lines += ["", f"## {'Figures' if name == 'figures' else title}", ""]
        lines += [
            "```sh",
            COMMANDS[name].format(pairs=pairs[name]),
            "```",
            "",
            *([f"{brackets[0].upper()}{brackets[1:]}.", ""] if brackets else []),
        ]
        if name == "figures":
            lines += [f"![Figure {row[0]}: {row[1]}](paper/{Path(row[-1]).name})\n" for row in found["lines"]]
        else:
            lines += _table(found)
        if name == "table5":
            lines += ["", "![IoU of held-out pairs over training pairs](paper/convergence.png)"]
        lines += [
            "",
            *(f"* {note}" for note in found["notes"]),
            f"* The command took {found['seconds']:.0f} s{_THERE.get(name, '')}.",
        ]
    return "\n".join(lines) + "\n"


def _table(found: dict[str, Any]) -> list[str]:
    head = found["columns"]
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *found["lines"]]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _macs(row: dict[str, Any]) -> str:
    return f"{row['macs']['layers'] / 1e9:.1f}"


def _list(parts: Any) -> str:
    return ", ".join(parts)


if __name__ == "__main__":
    write_text(DOCS / "paper.md", page(read(DOCS / "paper")))
