"""``python -m benchmarks.label_areas MODEL DATA``: areas of labels in maps that a label model makes.

For each class, windows of the label maps below DATA as the training draws them (unbent), and maps that the label model
makes at several sizes: the share of each label, and edges, pairs of neighbours with different labels, per 1,000 pixels.
With ``--fit ROUNDS`` the card's ``label_weights`` are fitted first: after each round a label's is multiplied by a power
of what it has too little, and as the areas of a few maps are chance, the mean of the last two thirds of the rounds is
taken. MODEL's card then holds them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine import Pipeline
from engine.models.card import ModelCard, read_card
from engine.storage.files import write_json
from engine.training import labels as training

RATE = 0.2  # of a round: an odds ratio of two labels grows about as the fifth power of their weights'
LEAST = 0.005  # share that a label is taken to have at least: what is hardly there is not multiplied without end
WINDOWS = 1000


def figures(maps: Sequence[np.ndarray], count: int) -> dict[str, Any]:
    """Of label maps: the share of each label (count,), and edges per 1,000 pixels."""
    areas = np.mean([np.bincount(labels.ravel(), minlength=count) / labels.size for labels in maps], 0)
    edges = np.mean([(m[1:] != m[:-1]).mean() + (m[:, 1:] != m[:, :-1]).mean() for m in maps])
    return {"areas": areas.round(4).tolist(), "edges": round(float(1000 * edges), 1)}


def of_training(card: ModelCard, data: Path) -> list[dict[str, Any]]:
    """Figures of each class's windows, of all maps below a folder, straight as they are."""
    scale, middle = card.label_scale, card.label_scale // 2
    windows = training.read_windows(data, card.label_count, card.patch, scale, 0)
    found: list[dict[str, Any]] = []
    for asked in range(len(card.labels)):
        rng, maps = np.random.default_rng(asked), []
        for _ in range(WINDOWS):
            index = int(rng.choice(len(windows.maps), p=windows.chances[asked]))
            labels = windows.maps[index][middle::scale, middle::scale]
            y, x = divmod(int(rng.choice(windows.corners[asked][index])), labels.shape[1] - card.patch + 1)
            maps.append(labels[y : y + card.patch, x : x + card.patch])
        found.append(figures(maps, card.label_count))
    return found


def sampled(model: Path, asked: int, size: tuple[int, int], seeds: Sequence[int]) -> list[np.ndarray]:
    """uint8 maps of labels of one class."""
    pipe, count = Pipeline(model), read_card(str(model)).label_count
    grey = [np.asarray(pipe(size=size, label=asked, seed=seed))[0] for seed in seeds]
    return [np.rint(one / 255 * (count - 1)).astype(np.uint8) for one in grey]


def fit(model: Path, wanted: list[dict[str, Any]], rounds: int, size: tuple[int, int], maps: int) -> None:
    """Fit ``label_weights``; the card has those of the present round, and of all when it returns."""
    facts, card = json.loads((model / "card.json").read_text()), read_card(str(model))
    rows = np.array(card.label_weights or np.ones((len(card.labels), card.label_count)))
    logs = []
    for turn in range(rounds):
        for asked in range(len(rows)):
            seeds = range(1000 + turn * maps, 1000 + (turn + 1) * maps)
            have = figures(sampled(model, asked, size, seeds), card.label_count)["areas"]
            ratio = np.maximum(wanted[asked]["areas"], LEAST) / np.maximum(have, LEAST)
            rows[asked] *= ratio ** (RATE / (1 + turn / 3))
            rows[asked] /= rows[asked].max()
            print(f"round {turn + 1}, class {asked}: areas {have}, weights {rows[asked].round(3).tolist()}", flush=True)
        write_json(model / "card.json", {**facts, "label_weights": rows.round(3).tolist()})
        logs.append(np.log(rows))
    if logs:
        rows = np.exp(np.mean(logs[len(logs) // 3 :], 0))
        rows /= rows.max(1, keepdims=True)
        write_json(model / "card.json", {**facts, "label_weights": rows.round(3).tolist()})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a label model")
    parser.add_argument("data", type=Path, help="folder of label maps, as of its training")
    parser.add_argument("--sizes", default="64,128,256,512", help="sides of the maps made, label pixels")
    parser.add_argument("--maps", type=int, default=4, help="maps a class and size")
    parser.add_argument("--fit", type=int, default=0, metavar="ROUNDS", help="fit the card's label_weights first")
    parser.add_argument("--fit-size", type=int, default=192, help="side of the maps that they are fitted on")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(arguments)
    wanted = of_training(read_card(str(args.model)), args.data)
    fit(args.model, wanted, args.fit, (args.fit_size, args.fit_size), args.maps)
    card = read_card(str(args.model))
    rows = [{"class": card.labels[asked], "of": "maps", **row} for asked, row in enumerate(wanted)]
    for side in map(int, args.sizes.split(",")):
        for asked, name in enumerate(card.labels):
            made = sampled(args.model, asked, (side, side), range(args.maps))
            rows.append({"class": name, "of": f"made, {side}", **figures(made, card.label_count)})
            print(rows[-1], flush=True)
    print(f"| class | of | {' | '.join(f'{name} %' for name in card.labels)} | edges |")
    print("|---" * (len(card.labels) + 3) + "|")
    for row in sorted(rows, key=lambda row: card.labels.index(row["class"])):
        shares = " | ".join(f"{100 * share:.1f}" for share in row["areas"])
        print(f"| {row['class']} | {row['of']} | {shares} | {row['edges']} |")
    if args.json:
        write_json(args.json, {"label_weights": card.label_weights, "figures": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
