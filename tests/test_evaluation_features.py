"""Features of the evaluation, the Inception Score and diversity, beside the libraries of the field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_parts import crops
from evaluation_sets import pictures
from fidelity import fidelity
from launching import ROOT, launch
from torch import nn

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.embedding.embedded_features import embedded_network
from engine.embedding.extractors import feature_extractor
from engine.evaluation.diversity import layers_distance, pairs_of, ssim, unit
from engine.evaluation.frechet import frechet_distance, statistics_of
from engine.evaluation.gathered import shared
from engine.evaluation.inception_score import inception_score
from engine.models.networks.inception import BLOCKS, FidInception

TILES = (
    Path(os.environ.get("SLIDEFIELD_GOLDEN", ROOT.parent / "shared" / "golden")).parent
    / "data"
    / "diffinfinite"
    / "tiles"
)
CROPS = np.random.default_rng(0).integers(0, 256, (12, 64, 48, 3), np.uint8)


def named(index: int) -> str:
    return f"crop {index}"


def part(ranks: int, *arguments: object) -> list[dict[str, Any]]:
    done = launch(ranks, *arguments, module="evaluation_parts")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights of Inception whose features spread, in a file as torch-fidelity and pytorch-fid have it."""
    torch.manual_seed(0)
    network = FidInception()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(network.fc.bias)
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return path


# -- Inception --


def test_inception_is_that_of_torch_fidelity_and_so_is_fid(weights):
    theirs = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    pixels = np.concatenate([CROPS[:4], CROPS[4:8] // 3 + 20])
    features, logits = feature_extractor(f"inception:{weights}")(pixels, named)
    with torch.inference_mode():
        wanted = [part.numpy() for part in theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2))]
    for ours, of_theirs in zip((features, logits), wanted, strict=True):
        assert np.abs(of_theirs).max() > 0.1
        assert np.abs(ours - of_theirs).max() < 1e-4
    metric = fidelity("metric_fid")
    some = slice(0, 2048, 8)  # their eigenvalues of 2048 features take 10 s
    a, b = (metric.fid_features_to_statistics(torch.from_numpy(part[:, some])) for part in np.split(wanted[0], 2))
    fid = metric.fid_statistics_to_metric(a, b, False)["frechet_inception_distance"]
    own = (statistics_of(ranks_of(), shared(part[:, some], ranks_of())) for part in np.split(features, 2))
    assert fid > 0.1
    assert frechet_distance(*own) == pytest.approx(fid, abs=1e-3)


def test_a_saved_network_of_pytorch_fids_class_gives_features_and_no_logits(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    of_class = {name: f"blocks.{n}.{m}" for n, names in enumerate(BLOCKS) for m, name in enumerate(names)}
    renamed = {
        key.replace(first := key.split(".")[0], of_class[first]): value
        for key, value in state.items()
        if not key.startswith("fc.")
    }
    torch.save(renamed, tmp_path / "saved.pt")
    features, logits = feature_extractor(str(tmp_path / "saved.pt"))(CROPS[:2], named)
    assert logits is None
    assert (features == feature_extractor(str(weights))(CROPS[:2], named)[0]).all()


def test_other_weights_are_refused(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    for text, says in (
        (str(tmp_path / "torchvision.pth"), "no weights of FID's Inception \\(fc.weight differs"),
        ("inception", "none are downloaded; pass inception:FILE.pth"),
        ("inception:nowhere.pth", "`features` nowhere.pth is no file of weights"),
        ("nowhere", "`features` nowhere is not there; name embedded"),
        ("nowhere:nothing", "`features` nowhere:nothing cannot be imported"),
    ):
        with pytest.raises(ValueError, match=says):
            feature_extractor(text)


# -- networks of others --


class Classifier(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = x.mean((2, 3))
        return features, features[:, :2]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_network_in_torchscript_may_give_logits_too(tmp_path):
    torch.jit.save(torch.jit.script(Classifier()), tmp_path / "network.pt")
    (tmp_path / "config.json").write_text('{"mean": [0, 0, 0], "std": [1, 1, 1]}')
    features, logits = feature_extractor(str(tmp_path))(CROPS, named)
    assert np.allclose(features, CROPS.mean((1, 2)) / 255, atol=1e-6)
    assert (logits == features[:, :2]).all()


@pytest.mark.parametrize(
    ("config", "package"), [('"architecture": "a"', "timm"), ('"model_type": "a"', "transformers")]
)
def test_a_network_of_a_package_that_is_absent_or_damaged_is_one_line(tmp_path, config, package, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(f'{{{config}, "mean": [0, 0, 0], "std": [1, 1, 1]}}')
    monkeypatch.setattr("engine.embedding.saved_network.import_module", raises(ModuleNotFoundError("no", name=package)))
    with pytest.raises(ValueError, match=f"`features` .* not installed; pip install {package}"):
        feature_extractor(str(tmp_path))
    monkeypatch.setattr("engine.embedding.saved_network.import_module", lambda name: object())
    with pytest.raises(ValueError, match=f"cannot be loaded by {package}"):
        feature_extractor(str(tmp_path))


def raises(error: Exception) -> Any:
    def fail(name: str) -> None:
        raise error

    return fail


def test_networks_of_timm_and_transformers_are_read_as_they_were_saved(tmp_path):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=3, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 32, "width": 32}}'
    )
    features, logits = feature_extractor(str(tmp_path))(CROPS, named)
    assert (features.shape, logits.shape) == ((12, 16), (12, 3))


# -- embedded --


def test_embedded_features_of_a_crop_do_not_depend_on_its_batch():
    extractor = feature_extractor("embedded")
    together, logits = extractor(CROPS, named)
    assert logits is None
    assert together.dtype == np.float32
    alone = np.concatenate([extractor(CROPS[n : n + 1], named)[0] for n in range(len(CROPS))])
    assert np.abs(together - alone).max() < 1e-5
    with pytest.raises(ValueError, match="crops of 24 px are too small"):
        extractor(CROPS[:, :24], named)


@pytest.mark.skipif(not TILES.is_dir(), reason=f"{TILES} is absent")
def test_embedded_features_tell_tiles_from_blurred_and_noisy_ones():
    tiles = np.stack([crops(str(TILES), 64).read(number) for number in range(0, 5120, 32)])
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(tiles).permute(0, 3, 1, 2).float(), 3, 1, 1)
    noise = tiles[1::2] + np.random.default_rng(0).normal(0, 20, tiles[1::2].shape)
    sets = (
        tiles[::2],
        tiles[1::2],
        blurred.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()[1::2],
        noise.clip(0, 255).astype(np.uint8),
    )
    extractor = feature_extractor("embedded")
    of_sets = [statistics_of(ranks_of(), shared(extractor(part, named)[0], ranks_of())) for part in sets]
    between, of_blurred, of_noisy = (frechet_distance(of_sets[0], other) for other in of_sets[1:])
    assert of_blurred > 3 * between
    assert of_noisy > 3 * between


# -- Inception Score --


def test_the_inception_score_is_that_of_torch_fidelity_on_1_and_3_ranks(tmp_path):
    logits = np.random.default_rng(1).normal(0, 3, (103, 17)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    wanted = fidelity("metric_isc").isc_features_to_metric(torch.from_numpy(logits))
    for ranks in (1, 3):
        (measure,) = part(ranks, "score", tmp_path / "logits.npy")
        assert measure["value"] == pytest.approx(wanted["inception_score_mean"], abs=1e-9)
        assert measure["error"] == pytest.approx(wanted["inception_score_std"], abs=1e-9)
    with pytest.raises(AgreedError, match="takes 10 crops or more and there are 9"):
        inception_score(ranks_of(), shared(logits[:9], ranks_of()))


# -- diversity --


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = CROPS[:3], (CROPS[3:6] // 2 + CROPS[:3] // 2).astype(np.uint8)
    wanted = [metrics.structural_similarity(x, y, channel_axis=-1, data_range=255) for x, y in zip(a, b, strict=True)]
    ours = ssim(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b))).numpy()
    assert ours == pytest.approx(np.array(wanted), abs=1e-9)
    assert min(wanted) > 0.1


def test_the_perceptual_distance_follows_the_formula_of_lpips():
    theirs = fidelity("sample_similarity_lpips")
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (CROPS[:2], CROPS[2:4]))
    network = embedded_network("cpu")
    with torch.inference_mode():
        layers = [network.layers(x.float() / 127.5 - 1) for x in (a, b)]
        wanted = sum(
            theirs.spatial_average(
                (theirs.normalize_tensor(p) - theirs.normalize_tensor(q)).square().sum(1, keepdim=True)
            )
            for p, q in zip(*layers, strict=True)
        )
        ours = layers_distance("cpu")(a, b)
        assert torch.allclose(ours, wanted.flatten(), rtol=1e-5)
        assert layers_distance("cpu")(a, a).abs().max() == 0
    assert unit(torch.tensor([3.0, 4.0])[None, :, None, None]).flatten().tolist() == pytest.approx([0.6, 0.8])


class Squares(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().mean([1, 2, 3], keepdim=True)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_diversity_is_the_mean_over_the_same_pairs_on_1_and_3_ranks(tmp_path):
    made, reference = (pictures(tmp_path / name, count, seed=seed) for name, count, seed in (("a", 5, 1), ("b", 9, 2)))
    torch.jit.save(torch.jit.script(Squares()), tmp_path / "lpips.pt")
    one, three = (part(ranks, "diversity", made, reference, tmp_path / "lpips.pt") for ranks in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert [a[key] for key in ("value", "error", "reference")] == pytest.approx(
            [b[key] for key in ("value", "error", "reference")], abs=1e-9
        )
    of_reference = crops(str(reference))
    pixels = of_reference.pixels(range(9)).astype(float) / 127.5 - 1
    drawn = pairs_of(9, 20, 0)
    assert len(np.unique(drawn, axis=0)) == 20
    assert one[1]["name"] == "LPIPS of pairs"
    assert one[1]["reference"] == pytest.approx(((pixels[drawn[:, 0]] - pixels[drawn[:, 1]]) ** 2).mean(), rel=1e-5)
    done = launch(2, "diversity", made, reference, tmp_path / "a" / "0000.png", module="evaluation_parts")
    assert done.returncode == 1
    assert "0000.png is no TorchScript" in done.stderr
    assert len(done.stderr.splitlines()) == 1
