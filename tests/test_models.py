import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT
from PIL import Image

from engine.models.card import colored, read_card
from engine.models.files import EMBEDDED, EMBEDDED_LABELS, WEIGHTS
from engine.models.folder import check_model_folder, load_model, load_part, save_part
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.models.networks.mask_unet import Attention, LabelUNet, LinearAttention, MaskAttention, MaskUNet
from engine.training.autoencoder import to_tensor, within

GOLDEN = Path(os.environ.get("SLIDEFIELD_GOLDEN", ROOT.parent / "shared" / "golden"))


def test_weights_that_are_not_finite_are_named_before_anything_runs(tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    check_model_folder(model)
    tensors = load_file(model / "vae" / WEIGHTS)
    tensors["decoder.0.bias"][1] = float("nan")
    save_file(tensors, model / "vae" / WEIGHTS)
    with pytest.raises(ValueError, match=r"vae.*safetensors: decoder.0.bias has 1 of \d+ values that are not finite"):
        check_model_folder(model)


def test_mask_attention_is_softmax_attention_with_the_mask_as_query():
    torch.manual_seed(0)
    layer = MaskAttention(16)
    x, mask = torch.randn(2, 16, 6, 6), (torch.rand(2, 1, 6, 6) > 0.5).float()
    k, v = layer.to_kv(x).flatten(2).unflatten(1, (2, 4, 32)).unbind(1)
    q = layer.to_q(mask.expand(-1, 16, -1, -1)).flatten(2).unflatten(1, (4, 32)) * 32**-0.5
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).softmax(-1)
    expected = layer.to_out(torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 128, 6, 6))
    torch.testing.assert_close(layer(x, mask), expected)


def test_linear_attention_is_its_definition():
    torch.manual_seed(0)
    layer, x = LinearAttention(16), torch.randn(2, 16, 6, 4)
    q, k, v = layer.to_qkv(x).flatten(2).unflatten(1, (3, 4, 32)).unbind(1)  # (B, h, d, N)
    q, k, v = q.softmax(-2) * 32**-0.5, k.softmax(-1), v / 24
    context = torch.einsum("bhdn,bhen->bhde", k, v)
    expected = layer.to_out(torch.einsum("bhde,bhdn->bhen", context, q).reshape(2, 128, 6, 4))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected)


def test_attention_in_the_middle_is_softmax_attention_between_all_positions():
    torch.manual_seed(0)
    layer, x = Attention(16), torch.randn(2, 16, 6, 4)
    q, k, v = layer.to_qkv(x).flatten(2).unflatten(1, (3, 4, 32)).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q * 32**-0.5, k).softmax(-1)
    expected = layer.to_out(torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 128, 6, 4))
    torch.testing.assert_close(layer(x), expected)


def test_the_label_network_may_go_without_attention_at_full_size():
    whole, lean = (LabelUNet(16, 3, dim_mults=(1, 2), channels=5, attention_from=n) for n in (0, 1))
    gone = {name.split(".fn")[0] for name in whole.state_dict().keys() - lean.state_dict().keys()}
    assert gone == {"downs.0.2", "ups.1.2"}
    assert LabelUNet(**lean.config).state_dict().keys() == lean.state_dict().keys()
    out = lean(torch.zeros(1, 5, 8, 8), torch.zeros(1).long(), torch.zeros(1).long())
    assert out.shape == (1, 5, 8, 8)


def test_the_label_network_hears_its_class_and_the_null_is_a_parameter_of_its_own():
    torch.manual_seed(0)
    network = LabelUNet(16, 3, dim_mults=(1, 2), channels=5).eval()
    assert LabelUNet(**network.config).state_dict().keys() == network.state_dict().keys()
    assert network.null_classes_emb.shape == (16,)
    x, t = torch.randn(1, 5, 8, 12).expand(4, -1, -1, -1), torch.full((4,), 500)
    with torch.inference_mode():
        before = network(x, t, torch.tensor([0, 1, 2, -1]))
        network.null_classes_emb.add_(1)
        after = network(x, t, torch.tensor([0, 1, 2, -1]))
    assert before.shape == x.shape
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(before) for b in before[:i])
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3] - after[3]).abs().max() > 1e-3


def test_diffinfinites_own_weights_give_its_own_output():
    folder = GOLDEN / "diffinfinite-image"
    if not folder.exists():
        pytest.skip(f"{folder} is not here: the outputs of DiffInfinite's own code")
    network = MaskUNet(**json.loads((folder / "config.json").read_text())["unet"]).eval()
    weights = torch.load(folder / "model-10.pt", weights_only=True, map_location="cpu")["ema"]
    prefix = "ema_model.model."
    network.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    io = {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(folder / "io.npz").items()}
    mask = io["mask"].float()
    with torch.inference_mode():
        output = network(io["x"], io["t"], mask.amax((1, 2, 3)).long(), (mask > 0).float())
    assert float((output - io["eps"]).norm() / io["eps"].norm()) < 1e-5


def test_a_network_goes_to_safetensors_and_back(tmp_path):
    torch.manual_seed(0)
    network = PatchAutoencoder(latent_channels=4, channels=(8, 8), blocks=(1, 1))
    save_part(network, tmp_path, torch.float32)
    again = load_part(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_models_hash_is_of_its_classes_and_not_of_the_modules_they_are_in(tmp_path):
    def hash_of(unet):
        index = json.loads((EMBEDDED / "model_index.json").read_text()) | {"unet": unet}
        (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
        return read_card(str(tmp_path / "model")).hash

    shutil.copytree(EMBEDDED, tmp_path / "model")
    assert hash_of(["slidefield", "MaskUNet"]) == read_card("embedded").hash
    assert hash_of(["engine.models.diffinfinite", "MaskUNet"]) == read_card("embedded").hash
    assert hash_of(["slidefield", "LabelUNet"]) != read_card("embedded").hash


def test_a_models_hash_is_of_its_weights_and_settings(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "model")
    hashes = [read_card("embedded").hash]
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    for change in ({"labels": card["labels"][::-1]}, {"latents_gain": 1.5}, {"has_null": False}):
        (tmp_path / "model" / "card.json").write_text(json.dumps({**card, **change}))
        hashes.append(read_card(str(tmp_path / "model")).hash)
    weights = tmp_path / "model" / "unet" / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    hashes.append(read_card(str(tmp_path / "model")).hash)
    assert hashes[0] == hashes[1]  # names are for viewers
    assert len(set(hashes)) == 4


def test_every_label_has_a_colour_of_its_own_and_the_first_are_the_embedded_models():
    entries = colored([f"label {index}" for index in range(64)])
    assert len({tuple(entry["color"]) for entry in entries}) == 64
    assert tuple(tuple(entry["color"]) for entry in entries[:5]) == read_card("embedded").colors


def test_the_embedded_model_is_small_has_a_card_and_runs():
    size = sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file())
    assert size <= 25e6
    card = read_card("embedded")
    assert len(card.labels) == 5
    assert card.pixel_size_um == 0.5
    text = (EMBEDDED / "README.md").read_text()
    for said in ("licence", "trained on", "minutes", "optical density", "Wasserstein"):
        assert said.lower() in text.lower()
    model = load_model(card.folder)
    latents = torch.zeros(1, card.channels, card.patch, card.patch)
    with torch.inference_mode():
        assert model.decode(latents).shape == (1, 3, card.patch * card.factor, card.patch * card.factor)


def test_the_embedded_label_model_is_small_has_a_card_and_runs():
    size = sum(f.stat().st_size for f in EMBEDDED_LABELS.rglob("*") if f.is_file())
    assert size <= 5e6
    card = read_card(str(EMBEDDED_LABELS))
    assert (card.role, card.condition, card.label_count, card.label_scale) == ("labels", "class", 5, 8)
    assert card.labels[1:] == read_card("embedded").labels[1:]
    text = (EMBEDDED_LABELS / "README.md").read_text()
    for said in ("licence", "trained on", "minutes", "edges", "gets wrong"):
        assert said.lower() in text.lower()
    network = load_part(EMBEDDED_LABELS / "unet")
    with torch.inference_mode():
        out = network(torch.zeros(1, 5, 64, 64), torch.full((1,), 500), torch.tensor([1]))
    assert out.shape == (1, 5, 64, 64)


@pytest.mark.parametrize("weights", [[[1.0] * 5], [[1.0] * 4] * 5, [[1.0] * 5] * 4 + [[1.0] * 4], [[]] * 5])
def test_weights_of_labels_that_do_not_fit_the_maps_are_refused(tmp_path, weights):
    folder = shutil.copytree(EMBEDDED_LABELS, tmp_path / "maps")
    facts = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**facts, "label_weights": weights}))
    with pytest.raises(ValueError, match=r"card.json: label_weights has \d rows; .* one for each of 5 classes"):
        read_card(str(folder))
    (folder / "card.json").write_text(json.dumps({**facts, "label_weights": [[1.0] * 5] * 5}))
    card = read_card(str(folder))
    assert card.label_weights == ((1.0,) * 5,) * 5
    assert card.hash != read_card(str(EMBEDDED_LABELS)).hash, "another model to a run that goes on"


@torch.no_grad()
def test_the_embedded_decoder_ends_all_four_corners_of_an_image_alike():
    """Windows that end somewhere against what larger ones have there; a spike in a corner was 4 times the edges'."""
    network = load_part(ROOT / "engine" / "models" / "embedded" / "vae")
    tissue = np.asarray(Image.open(ROOT / "benchmarks" / "notes" / "sample.jpg").convert("RGB"))[:704, :704]
    less, rng = network.margin, np.random.default_rng(0)
    off = np.zeros((320 - 2 * less * network.factor,) * 2)
    for _ in range(6):
        y, x = rng.integers(0, tissue.shape[0] - 320, 2)
        latents = network.encode(to_tensor([tissue[y : y + 320, x : x + 320]]))
        whole, part = network.decode(latents), network.decode(within(latents, less))
        off += (part - within(whole, less * network.factor)).abs().mean((0, 1)).numpy()
    edges = np.mean([side.mean() for side in (off[:8], off[-8:], off[:, :8], off[:, -8:])])
    corners = [part.mean() for half in (off[:8], off[-8:]) for part in (half[:, :8], half[:, -8:])]
    assert max(corners) < 2 * edges, corners
