"""What the published systems' own code computes, computed here from their own checkpoints.

Folders in ``$SLIDEFIELD_GOLDEN`` (default: ``../shared/golden``), one a test: every one whose name begins with that of
a system is converted by the real command and compared with the arrays in its ``io.npz``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, environment

from engine.models.card import Card, read_card
from engine.models.folder import Model, load_model

GOLDEN = Path(os.environ.get("SLIDEFIELD_GOLDEN", ROOT.parent / "shared" / "golden"))
SYSTEMS = {
    "diffinfinite-image": "diffinfinite-image",
    "diffinfinite-mask": "diffinfinite-labels",
    "large-image-diffusion": "large-image-diffusion",
    "sdm-nuclei": "sdm",
    "feature-aligned": "feature-aligned",
}
EVALUATION, DECODE = 1e-5, 1e-4


@dataclass(frozen=True)
class Golden:
    """A converted checkpoint and what its system's own code computed with it."""

    folder: Path
    card: Card
    model: Model
    io: dict[str, np.ndarray]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.io[name]))

    def evaluate(self, x: str, t: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.network(self.tensor(x), t, inputs)

    def check(self, found: torch.Tensor, name: str, bound: float = EVALUATION) -> None:
        expected = self.tensor(name)
        assert found.shape == expected.shape
        assert relative(found, expected) <= bound, name


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def folders(system: str) -> list[Path]:
    return sorted(f for f in GOLDEN.glob(f"{system}*") if f.is_dir())


def goldens(system: str) -> Callable:
    """One test a folder of a system; where there is none, one that says so."""
    found = [pytest.param((system, folder), id=folder.name) for folder in folders(system)]
    absent = pytest.param((system, None), id=f"{system} absent")
    return pytest.mark.parametrize("golden", found or [absent], indirect=True)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """From a system and a folder to its model folder, converted once a session by the real command."""
    made: dict[Path, Path] = {}

    def convert(system: str, folder: Path) -> Path:
        if folder not in made:
            out = tmp_path_factory.mktemp("models") / folder.name
            line = [sys.executable, "-m", "engine.models.convert", SYSTEMS[system], folder, "--out", out]
            done = subprocess.run(
                [str(word) for word in line], cwd=ROOT, env=environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            made[folder] = out
        return made[folder]

    return convert


@pytest.fixture
def golden(request: pytest.FixtureRequest, converted: Callable[[str, Path], Path]) -> Golden:
    system, folder = request.param
    if folder is None:
        pytest.skip(f"{GOLDEN / system} is not here: the outputs of the system's own code")
    pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    model = converted(system, folder)
    with np.load(folder / "io.npz", allow_pickle=False) as arrays:
        return Golden(folder, read_card(str(model)), load_model(model), dict(arrays))


def guided(null: torch.Tensor, conditional: torch.Tensor, weight: float) -> torch.Tensor:
    return null + weight * (conditional - null)


@goldens("diffinfinite-image")
def test_diffinfinites_image_network(golden):
    mask, t = golden.tensor("mask").float(), golden.tensor("t")
    label = mask.amax((1, 2, 3)).long()
    eps = golden.evaluate("x", t, label=label, mask=(mask > 0).float())
    null = golden.evaluate("x", t, label=torch.zeros_like(label), mask=torch.zeros_like(mask))
    golden.check(eps, "eps")
    eps_cfg = guided(null, eps, float(golden.io["cond_scale"]) + 1)
    golden.check(eps_cfg, "eps_cfg")

    schedule, x = golden.card.schedule, golden.tensor("x")
    assert schedule.clip == 1
    pairs = [schedule.to_denoised(schedule.alpha_bar[int(level)]) for level in t]
    from_x, from_output = (torch.tensor(column)[:, None, None, None] for column in zip(*pairs, strict=True))
    golden.check((from_x * x + from_output * eps_cfg).clamp(-1, 1).float(), "x0_clipped")


@goldens("diffinfinite-mask")
def test_diffinfinites_label_network(golden):
    t, classes = golden.tensor("t"), golden.tensor("classes")
    eps = golden.evaluate("x", t, label=classes)
    null = golden.evaluate("x", t, label=torch.full_like(classes, -1))
    golden.check(eps, "eps")
    golden.check(null, "eps_null")
    golden.check(guided(null, eps, float(golden.io["cond_scale"]) + 1), "eps_cfg")


@goldens("large-image-diffusion")
def test_large_image_diffusions_tokens_and_network(golden):
    ssl = golden.tensor("ssl")
    region = golden.tensor("ssl_region") if "ssl_region" in golden.io else None
    assert golden.card.embedding_width == ssl.shape[1]
    assert golden.card.region_width == (0 if region is None else region.shape[1])
    tokens = golden.model.embed(ssl, region)
    golden.check(tokens, "context")
    index = golden.tensor("t").long() - 1  # theirs counts from 1
    golden.check(golden.evaluate("x", index, tokens=tokens), "eps")


@goldens("large-image-diffusion")
def test_large_image_diffusions_autoencoder(golden):
    from engine.models.folder import load_part

    z = golden.tensor("z")
    with torch.inference_mode():
        golden.check(golden.model.decode(z), "decoded", DECODE)
        vae = load_part(golden.card.folder / "vae")
        golden.check(vae.decode(z, force_not_quantize=True).sample, "decoded_no_quantize", DECODE)
    assert golden.tensor("decoded").shape[-1] == z.shape[-1] * golden.card.factor


@goldens("sdm-nuclei")
def test_the_nuclei_network(golden):
    y = golden.tensor("y")
    assert golden.card.semantic_channels == y.shape[1]
    golden.check(golden.evaluate("x", golden.tensor("t"), map=y), "output")


@goldens("feature-aligned")
def test_the_feature_aligned_network(golden):
    embeddings = golden.tensor("text_embeddings")
    tokens = golden.model.embed(embeddings, None)[golden.tensor("classes")]
    golden.check(golden.evaluate("x", golden.tensor("t"), tokens=tokens), "eps")
    assert not golden.card.has_null
