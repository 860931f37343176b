"""Conversion: settings that the golden folders have not, and refusals in one line with nothing left on disk."""

import argparse
import builtins
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import published
import pytest
import torch

from engine.diffusion.schedule import betas
from engine.diffusion.solvers import asked_at
from engine.inputs.labels import read_class_table
from engine.job import SampleJob
from engine.models.card import read_card
from engine.models.convert.__main__ import SYSTEMS, main
from engine.models.convert.checkpoint import SIGNS
from engine.models.convert.systems import CONVERT
from engine.models.folder import load_model
from engine.models.networks.mask_unet import LabelUNet, MaskUNet

pytest.importorskip("diffusers")
torch.set_num_threads(1)


def relative(tensor, expected):
    return float((tensor - expected).norm() / expected.norm())


def random_weights(network, seed=0):
    torch.manual_seed(seed)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.08 if weights.ndim > 1 else 0.3)
    return network.eval().requires_grad_(False)


def converted(system, checkpoint, tmp_path, *options):
    out = tmp_path / "model"
    assert main([system, str(checkpoint), "--out", str(out), *map(str, options)]) == 0
    return read_card(str(out)), load_model(out)


def prefixed(network, prefix):
    return {prefix + key: value for key, value in network.state_dict().items()}


# --- nuclei ---


def nuclei(folder, map_channels=6, channels=3, **changes):
    """A checkpoint of random weights with its args.json, and the network it is of."""
    args = {
        "image_size": 32,
        "num_classes": 6,
        "num_channels": 32,
        "num_res_blocks": 1,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "num_head_channels": -1,
        "attention_resolutions": "16",
        "channel_mult": "1,2",
        "use_scale_shift_norm": False,
        "resblock_updown": False,
        "use_new_attention_order": False,
        "learn_sigma": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "predict_xstart": False,
        "rescale_timesteps": False,
    } | changes
    multiples = [float(n) for n in args["channel_mult"].split(",")] if args["channel_mult"] else [1, 2, 3, 4]
    network = random_weights(
        published.UNet(
            channels,
            channels * (2 if args["learn_sigma"] else 1),
            args["num_channels"],
            multiples,
            args["num_res_blocks"],
            [args["image_size"] // int(n) for n in args["attention_resolutions"].split(",")],
            args["num_heads"],
            args["num_head_channels"],
            args["num_heads_upsample"],
            args["use_scale_shift_norm"],
            args["resblock_updown"],
            args["use_new_attention_order"],
            map_channels,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(args))
    torch.save(network.state_dict(), folder / "ema_0.9999_000001.pt")
    return network


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resblock_updown": True, "learn_sigma": True, "use_scale_shift_norm": True, "noise_schedule": "cosine"},
        {"resblock_updown": True, "num_head_channels": 16, "channels": 1},
        {"channels": 1, "learn_sigma": True, "map_channels": 1},
        {"use_new_attention_order": True, "num_heads": 2, "num_heads_upsample": 8, "map_channels": 3},
        {"channel_mult": "", "image_size": 64, "attention_resolutions": "32,8", "predict_xstart": True},
        {"channel_mult": "1,2,2", "num_res_blocks": 2, "learn_sigma": True, "diffusion_steps": 500},
        {"rescale_timesteps": True, "diffusion_steps": 500},
    ],
    ids=str,
)
def test_the_nuclei_network_with_other_settings(tmp_path, changes):
    network = nuclei(tmp_path / "run", **changes)
    card, model = converted("sdm", tmp_path / "run", tmp_path)
    channels, side = card.channels, card.patch
    assert side == changes.get("image_size", 32)
    assert (card.condition, card.factor, model.decode, card.image_channels) == ("semantic", 1, None, channels)
    assert card.semantic_channels == changes.get("map_channels", 6)
    x, given = torch.randn(2, channels, side, side), torch.rand(2, card.semantic_channels, side, side)
    t = torch.tensor([490, 3])
    with torch.inference_mode():
        output = model.network(x, t, {"map": given})
        expected = network(x, t * 2 if changes.get("rescale_timesteps") else t, given)
    assert output.shape[1] == channels * (2 if changes.get("learn_sigma") else 1)
    assert relative(output, expected) < 1e-5
    grey = channels == 1 and changes.get("learn_sigma", False)
    assert card.guided_channels == (2 if grey else None)
    assert (card.defaults["least_area"], card.defaults["torn_nuclei"]) == (30, "split")
    scheduler = json.loads((tmp_path / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["variance_type"] == ("learned_range" if changes.get("learn_sigma") else "fixed_large")
    assert card.schedule.prediction == ("sample" if changes.get("predict_xstart") else "epsilon")
    assert card.schedule.num_train_timesteps == changes.get("diffusion_steps", 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_head_channels": 16},
        {"resblock_updown": True, "learn_sigma": True, "use_scale_shift_norm": True, "noise_schedule": "cosine"},
        {"resblock_updown": True, "num_head_channels": 32, "channels": 1, "attention_resolutions": "32,16"},
        {"use_new_attention_order": True, "num_heads": 2, "num_heads_upsample": 8, "map_channels": 3},
        {"channel_mult": "1,3,2,2", "image_size": 64, "attention_resolutions": "32,8", "predict_xstart": True},
        {"channel_mult": "1,2,2", "num_res_blocks": 3, "learn_sigma": True, "diffusion_steps": 500},
        {"channel_mult": "2", "num_res_blocks": 2, "attention_resolutions": "32", "rescale_timesteps": True},
    ],
    ids=str,
)
def test_the_nuclei_network_from_its_weights_alone_is_that_of_its_arguments(tmp_path, capsys, changes):
    """The training writes no arguments: sizes from the weights, and what they cannot say from options."""
    network = nuclei(tmp_path / "run", **changes)
    with_arguments, _ = converted("sdm", tmp_path / "run", tmp_path)
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    (tmp_path / "run" / "args.json").unlink()
    unsaid = ("image_size", "num_head_channels", "num_heads", "num_heads_upsample", "use_new_attention_order")
    unsaid += ("noise_schedule", "diffusion_steps", "predict_xstart", "rescale_timesteps")
    told = ",".join(f"{key}={args[key]}" for key in unsaid)
    card, model = converted("sdm", tmp_path / "run", tmp_path, "--overwrite", "--set", told)
    assert card.hash == with_arguments.hash
    note = capsys.readouterr().out.splitlines()[-1]
    assert note.startswith("note: no args.json")
    assert f"image_size {args['image_size']}, num_head_channels {args['num_head_channels']}" in note
    x, given = torch.randn(1, card.channels, 32, 32), torch.rand(1, card.semantic_channels, 32, 32)
    t = torch.tensor([9])
    with torch.inference_mode():
        expected = network(x, t * (1000 // args["diffusion_steps"]) if args["rescale_timesteps"] else t, given)
        assert relative(model.network(x, t, {"map": given}), expected) < 1e-5


def test_a_nuclei_checkpoint_alone_is_taken_as_published(tmp_path, capsys):
    nuclei(tmp_path / "run", learn_sigma=True, use_scale_shift_norm=True, resblock_updown=True)
    (tmp_path / "run" / "args.json").unlink()
    card, _ = converted("sdm", tmp_path / "run", tmp_path)
    assert "preset monuseg): image_size 128, num_head_channels 32" in capsys.readouterr().out
    assert (card.patch, card.schedule.spacing, card.defaults["steps"]) == (128, "smallest_stride", 1000)
    assert card.schedule.alpha_bar == pytest.approx(np.cumprod(1 - betas("squaredcos_cap_v2", 1000)))
    card, _ = converted("sdm", tmp_path / "run", tmp_path, "--overwrite", "--preset", "dsb2018")
    assert card.schedule.alpha_bar == pytest.approx(np.cumprod(1 - betas("linear", 1000, 1e-4, 0.02)))
    for options, said in (
        (("--set", "num_head_channels=48"), "num_head_channels is 48 but attention has 64 features"),
        (("--preset", "stable"), "--preset stable is none of this system's: monuseg"),
        (("--set", "dropout=1"), "--set dropout: not one of what the weights cannot say"),
        (("--set", "image_size=3"), "image_size 3 cannot be halved 1 times"),
        (("--set", "noise_schedule=warm"), "warm"),
        (("--set", "num_head_channels=few"), "num_head_channels is few; expected a whole number"),
        (("--set", "diffusion_steps=0"), "diffusion_steps is 0; expected 1 or more"),
        (("--set", "predict_xstart=maybe"), "predict_xstart is maybe; expected true or false"),
    ):
        line = refused_elsewhere(tmp_path, capsys, "sdm", tmp_path / "run", *options)
        assert said in line, line


def refused_elsewhere(tmp_path, capsys, *arguments):
    """As ``refused``, where a model of that name is there already: it stays as it is."""
    capsys.readouterr()
    hash_before = read_card(str(tmp_path / "model")).hash
    line = refused(tmp_path, capsys, *arguments)
    assert read_card(str(tmp_path / "model")).hash == hash_before
    return line


# --- latent diffusion ---


def large_image(folder, region=None, prefix="run", first=None, kl=False, scale=1.0, **changes):
    """A run's folder with checkpoint and configuration, and the networks it is of.

    Args:
        kl: Whether the first stage is of KL; else it has a codebook.
        scale: ``scale_factor`` of the latents, a buffer of the checkpoint as ``scale_by_std`` makes one.
    """
    unet = {
        "image_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "attention_resolutions": [2, 1],
        "num_res_blocks": 1,
        "channel_mult": [1, 2],
        "num_heads": 2,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": 40,
        "use_checkpoint": True,
    } | changes
    ddconfig = {
        "ch": 32,
        "ch_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "in_channels": 3,
        "out_ch": 3,
        "z_channels": 3,
        "resolution": 64,
    } | (first or {})
    ddconfig |= {"double_z": True} if kl else {}
    stage = {"embed_dim": ddconfig["z_channels"] if kl else 3, "ddconfig": ddconfig} | ({} if kl else {"n_embed": 24})
    built = {k: v for k, v in unet.items() if k not in ("image_size", "use_spatial_transformer", "use_checkpoint")}
    network, autoencoder = published.UNet(**built), (published.Kl if kl else published.Vq)(**stage)
    network, autoencoder = random_weights(network), random_weights(autoencoder)
    width, keys = 12, {"patch_ssl_key": "feat_20x", "patch_embed_dim": 12, "normalize_ssl": True}
    embedder = {"patch_fc": torch.nn.Linear(width, unet["context_dim"])}
    if region:
        keys |= {"region_ssl_key": "feat_5x", "region_embed_dim": region}
        embedder["region_fc"] = torch.nn.Linear(region, unet["context_dim"])
    kind = "SSLEmbedder" if region else "PatchEmbedder"
    params = {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "timesteps": 1000,
        "unet_config": {"target": "ldm.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL" if kl else "ldm.VQModelInterface",
            "params": {**stage, "ddconfig": {"double_z": False, **ddconfig, "dropout": 0.0}},
        },
        "cond_stage_config": {"target": f"ldm.{kind}", "params": keys},
    }
    state = {
        "betas": torch.from_numpy(betas("scaled_linear", 1000, 0.0015, 0.0195)).float(),
        **prefixed(network, "model.diffusion_model."),
        **prefixed(autoencoder, "first_stage_model."),
        **prefixed(torch.nn.ModuleDict(embedder), "cond_stage_model."),
        "first_stage_model.loss.weight": torch.ones(1),
    } | ({} if scale == 1 else {"scale_factor": torch.tensor(scale)})
    run = folder / prefix
    (run / "checkpoints").mkdir(parents=True)
    (run / "configs").mkdir()
    (run / "configs" / "2024-01-01-project.yaml").write_text(json.dumps({"model": {"params": params}}))  # JSON is YAML
    (run / "configs" / "2024-01-01-lightning.yaml").write_text("lightning: {}\n")
    torch.save({"state_dict": state, "epoch": 1}, run / "checkpoints" / "last.ckpt")
    return network, autoencoder, embedder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": -1, "num_head_channels": 16, "transformer_depth": 2, "num_res_blocks": 2, "region": 20},
        {"channel_mult": [1, 3, 2], "attention_resolutions": [4], "use_linear_in_transformer": True},
        {"use_scale_shift_norm": True, "num_heads": 8, "num_head_channels": 32, "attention_resolutions": [1]},
        {"first": {"attn_resolutions": [32, 16], "num_res_blocks": 2, "ch_mult": [1, 1, 2]}},
        {"first": {"ch_mult": [1, 3, 2, 4], "z_channels": 5}, "region": 8},
    ],
    ids=str,
)
def test_latent_diffusion_with_other_settings(tmp_path, changes):
    network, autoencoder, embedder = large_image(tmp_path, **changes)
    card, model = converted("large-image-diffusion", tmp_path / "run", tmp_path)
    region = changes.get("region", 0)
    assert (card.condition, card.embedding_width, card.region_width) == ("embedding", 12, region)
    assert card.factor == 2 ** (len(changes.get("first", {}).get("ch_mult", [1, 2, 2])) - 1)
    side = card.patch
    torch.manual_seed(1)
    x, t, patch = torch.randn(2, 3, side, side), torch.tensor([950, 3]), torch.randn(2, 12)
    given = torch.randn(2, region) if region else None
    with torch.inference_mode():
        tokens = model.embed(patch, given)
        expected = [embedder["patch_fc"](patch / patch.norm(dim=1, keepdim=True))]
        expected += [embedder["region_fc"](given / given.norm(dim=1, keepdim=True))] if region else []
        assert relative(tokens, torch.stack(expected, 1)) < 1e-5
        assert relative(model.network(x, t, {"tokens": tokens}), network(x, t + 1, tokens)) < 1e-5
        assert relative(model.decode(x), autoencoder.decode(x)) < 1e-4
        image = torch.rand(1, 3, side * card.factor, side * card.factor) * 2 - 1
        assert relative(model.encode(image), autoencoder.encode(image)) < 1e-4


@pytest.mark.parametrize(
    "first", [{}, {"attn_resolutions": [32, 16], "num_res_blocks": 2, "ch_mult": [1, 1, 2, 4]}], ids=["f4", "f8"]
)
def test_a_first_stage_of_kl_decodes_and_encodes_as_published(tmp_path, first):
    _, autoencoder, _ = large_image(tmp_path, kl=True, scale=0.25, first=first)
    card, model = converted("large-image-diffusion", tmp_path / "run", tmp_path)
    levels = len(first.get("ch_mult", [1, 2, 2]))
    assert (card.factor, card.channels) == (2 ** (levels - 1), 3)
    config = json.loads((tmp_path / "model" / "vae" / "config.json").read_text())
    assert (config["_class_name"], config["scaling_factor"]) == ("AutoencoderKL", 0.25)
    torch.manual_seed(1)
    z, image = torch.randn(2, 3, 16, 16), torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        assert relative(model.decode(z), autoencoder.decode(z / 0.25)) < 1e-5
        assert relative(model.encode(image), autoencoder.encode(image) * 0.25) < 1e-5, "the mean, times the factor"


def test_a_first_stage_that_is_no_vq_and_no_kl_is_refused(tmp_path, capsys):
    large_image(tmp_path, kl=True)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    project = next((tmp_path / "run" / "configs").glob("*-project.yaml"))
    text = project.read_text()
    project.write_text(text.replace('"embed_dim": 3', '"embed_dim": 4'))
    assert "embed_dim is 4 and z_channels 3" in refused(tmp_path, capsys, "large-image-diffusion", path)
    project.write_text(text.replace('"double_z": true', '"double_z": false'))
    assert "double_z is False" in refused(tmp_path, capsys, "large-image-diffusion", path)
    project.write_text(text.replace("AutoencoderKL", "IdentityFirstStage"))
    state = torch.load(path)["state_dict"]
    torch.save({"state_dict": {k: v for k, v in state.items() if not k.startswith("first_stage_model.")}}, path)
    line = refused(tmp_path, capsys, "large-image-diffusion", path)
    assert "IdentityFirstStage" in line
    assert "VQ or KL" in line


def test_patches_are_sampled_by_the_published_plms(tmp_path):
    """As latent diffusion's sampler is called in the notebook of patches: levels 981, 961, ..., 1."""
    network, _, _ = large_image(tmp_path)
    card, model = converted("large-image-diffusion", tmp_path / "run", tmp_path, "--preset", "patches")
    assert {key: card.defaults[key] for key in ("solver", "steps", "eta", "guidance")} == {
        "solver": "plms",
        "steps": 50,
        "eta": 0.0,
        "guidance": 2.0,
    }
    timesteps = asked_at("plms", card.schedule.timesteps(50))
    assert timesteps.tolist() == [981, 961, 961, *range(941, 0, -20)]
    assert card.schedule.final == card.schedule.alpha_bar[0]
    assert card.schedule.eta_betas(timesteps) is None
    torch.manual_seed(1)
    x, t = torch.randn(2, 3, card.patch, card.patch), torch.tensor([981, 1])
    tokens = model.embed(torch.randn(2, 12))
    with torch.inference_mode():
        assert relative(model.network(x, t, {"tokens": tokens}), network(x, t, tokens)) < 1e-5


def test_a_preset_that_large_image_diffusion_has_not_is_refused(tmp_path, capsys):
    large_image(tmp_path)
    line = refused(tmp_path, capsys, "large-image-diffusion", tmp_path / "run", "--preset", "monuseg")
    assert "monuseg is none of this system's: large-image, patches" in line


def test_the_null_of_embeddings_is_the_layers_offset(tmp_path):
    _, _, embedder = large_image(tmp_path, region=8)
    _, model = converted("large-image-diffusion", tmp_path / "run", tmp_path)
    tokens = model.embed(torch.zeros(1, 12), None)
    assert torch.equal(tokens[0], torch.stack([embedder["patch_fc"].bias, embedder["region_fc"].bias]))


# --- DiffInfinite ---


def diffinfinite(path, network, config=None, kind="cosine", steps=1000):
    """A checkpoint as its trainer writes it; the raw weights are others."""
    kinds = {"cosine": ("squaredcos_cap_v2", 0, 0), "linear": ("linear", 0.1 / steps, 20 / steps)}
    name, *ends = kinds[kind]
    ema = {
        "initted": torch.tensor(True),
        "step": torch.tensor(1),
        "ema_model.betas": torch.from_numpy(betas(name, steps, *ends)).float(),
        **prefixed(network, "ema_model.model."),
        **{"online_model.model." + k: torch.zeros_like(v) for k, v in network.state_dict().items()},
    }
    raw = {"model." + k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": 1, "loss": [0.1], "lr": [], "model": raw, "opt": {}, "ema": ema, "scaler": None}, path)
    if config is not None:
        path.with_name("config.json").write_text(json.dumps(config))
    return network


def same_weights(model, network, inputs):
    x, t = torch.randn(2, network.config["channels"], 16, 16), torch.tensor([900, 10])
    with torch.inference_mode():
        return torch.equal(model.network(x, t, inputs), network(x.contiguous(), t, *inputs.values())) or (
            relative(model.network(x, t, inputs), network(x, t, *inputs.values())) < 1e-5
        )


def test_diffinfinites_image_model_from_its_weights_alone(tmp_path, capsys):
    network = diffinfinite(
        tmp_path / "model-3.pt", random_weights(MaskUNet(16, 3, (1, 3), 5, 2, 1)), None, "linear", 500
    )
    card, model = converted("diffinfinite-image", tmp_path / "model-3.pt", tmp_path)
    assert "resnet_block_groups: taken as 2" in capsys.readouterr().out
    mask = torch.ones(2, 1, 16, 16)
    assert same_weights(model, network, {"label": torch.tensor([2, 0]), "mask": mask})
    assert (card.channels, card.patch, card.factor, len(card.labels)) == (5, 64, 8, 3)
    assert not card.decodes
    assert model.decode is None
    assert card.schedule.num_train_timesteps == 500
    assert card.schedule.clip == 1
    assert not card.schedule.rederive_noise
    assert card.schedule.alpha_bar[0] == pytest.approx(1 - 0.1 / 500, rel=1e-6)
    assert card.defaults["guidance"] == 4


def test_weights_of_a_training_that_went_wrong_are_refused(tmp_path, capsys):
    network = random_weights(MaskUNet(16, 3, (1, 3), 5, 2, 1))
    with torch.no_grad():
        network.final_conv.bias[1] = float("nan")
    diffinfinite(tmp_path / "model-3.pt", network)
    line = refused(tmp_path, capsys, "diffinfinite-image", tmp_path / "model-3.pt")
    assert "unet: final_conv.bias has 1 of 5 values that are not finite" in line


def test_diffinfinites_own_yaml_says_groups_and_sizes(tmp_path):
    network = diffinfinite(tmp_path / "model-5.pt", random_weights(LabelUNet(8, 2, (1, 2, 2), 4, 2, 2)))
    yaml = tmp_path / "mask_gen_sample10.yaml"
    yaml.write_text(
        "unet:\n  dim: 8\n  num_classes: 2\n  dim_mults: [1, 2, 2]\n  channels: 4\n  resnet_block_groups: 2\n"
        "  block_per_layer: 2\ndm:\n  mask_size: 64\n  num_labels: 10\n  timesteps: 1000\n"
    )
    card, model = converted("diffinfinite-labels", tmp_path / "model-5.pt", tmp_path, "--config", yaml)
    assert same_weights(model, network, {"label": torch.tensor([-1, 1])})
    assert (card.condition, card.role, card.label_scale, card.label_count) == ("class", "labels", 4, 10)
    assert (card.patch, card.labels[1]) == (8, "squamous cell carcinoma")


def small_autoencoder(folder, channels=4):
    from diffusers import AutoencoderKL

    torch.manual_seed(3)
    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    network = AutoencoderKL(3, 3, *blocks, [8] * 4, 1, latent_channels=channels, norm_num_groups=4)
    network.save_pretrained(folder)
    return network.eval()


def test_diffinfinites_latents_are_scaled_for_the_named_autoencoder(tmp_path):
    vae = small_autoencoder(tmp_path / "pipeline" / "vae")
    diffinfinite(tmp_path / "a" / "model-1.pt", random_weights(MaskUNet(8, 5, (1, 2), 4, 2)), {"unet": {}})
    diffinfinite(tmp_path / "b" / "model-1.pt", random_weights(LabelUNet(8, 2, (1, 2), 4, 2)), {"unet": {}})
    z, image = torch.randn(1, 4, 4, 4), torch.rand(1, 3, 32, 32) * 2 - 1
    options = ("--vae", tmp_path / "pipeline", "--patch", 16)

    card, model = converted("diffinfinite-image", tmp_path / "a", tmp_path, *options)
    assert (card.decodes, card.patch, card.factor) == (True, 16, 8)
    with torch.inference_mode():  # pixels in [0, 1]
        assert relative(model.decode(z), 2 * vae.decode(z * 50).sample - 1) < 1e-5
        assert relative(model.encode(image), vae.encode((image + 1) / 2).latent_dist.mean / 50) < 1e-5

    _, model = converted("diffinfinite-labels", tmp_path / "b", tmp_path, *options, "--overwrite")
    std = torch.tensor([40.0, 36.0, 48.0, 32.0])[:, None, None]
    with torch.inference_mode():
        assert relative(model.decode(z), vae.decode(z * std).sample) < 1e-5


# --- feature-aligned ---


def feature_aligned(folder, changes=None, **more):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    settings = {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "mid_block_type": None,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        **(changes or {}),
    }
    network, linear = UNet2DConditionModel(**settings).eval(), torch.nn.Linear(512, 24)
    state = {**prefixed(network, "model."), **prefixed(linear, "text_to_cross_dim."), "clip_model.x": torch.ones(1)}
    folder.mkdir()
    torch.save({"model_state_dict": {**state, **more}, "epochs": 1}, folder / "feature-aligned-diffusion.pt")
    # The configuration of the network it was tuned from, whose channels were replaced.
    said = {**settings, "in_channels": 4, "out_channels": 4, "_class_name": "UNet2DConditionModel"}
    (folder / "unet_config.json").write_text(json.dumps(said))
    return network, linear


def test_a_feature_aligned_model_with_its_table_of_classes(tmp_path):
    aligned = {"map_expert_to_unet.weight": torch.ones(2, 2), "expert_model.resnet.conv1.weight": torch.ones(1)}
    network, linear = feature_aligned(tmp_path / "run", **aligned)
    table = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    np.save(tmp_path / "classes.npy", table)
    options = ("--class-embeddings", tmp_path / "classes.npy", "--names", "Tumor, Stroma, Debris")
    card, model = converted("feature-aligned", tmp_path / "run", tmp_path, *options)
    assert (card.condition, card.labels) == ("class", ("Tumor", "Stroma", "Debris"))
    assert (card.channels, card.patch, card.embedding_width, card.has_null) == (1, 16, 512, False)
    assert card.pixel_range == (0, 1)
    assert np.array_equal(read_class_table(SampleJob(), card), table)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([900, 5])
    with torch.inference_mode():
        tokens = model.embed(torch.from_numpy(table[[0, 2]]), None)
        expected = network(x, t, linear(torch.from_numpy(table[[0, 2]]))[:, None]).sample
        assert relative(model.network(x, t, {"tokens": tokens}), expected) < 1e-5


def clip_weights(width=64, depth=2, words=49408, projection=512):
    """Random weights of CLIP's text tower and of a part of its other tower, by their published names."""
    torch.manual_seed(5)
    block = {
        "layer_norm1": (width,),
        "layer_norm2": (width,),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    block |= {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    layers = {f"encoder.layers.{n}.{name}": shape for n in range(depth) for name, shape in block.items()}
    layers["final_layer_norm"] = (width,)
    weights = {"text_projection.weight": torch.randn(projection, width), "logit_scale": torch.ones(())}
    weights |= {"vision_model.pre_layrnorm.weight": torch.ones(8)}
    weights["text_model.embeddings.token_embedding.weight"] = torch.randn(words, width)
    weights["text_model.embeddings.position_embedding.weight"] = torch.randn(77, width)
    for name, shape in layers.items():
        weights[f"text_model.{name}.weight"] = torch.randn(shape) * 0.2 + (len(shape) == 1)
        weights[f"text_model.{name}.bias"] = torch.randn(shape[0])
    return {f"clip_model.{name}": value for name, value in weights.items()}


def text_features(weights, tokens, heads=1):
    """CLIP's text tower by torch's own layers: pre-normalised blocks, causal, read at the last token."""
    text = {key.removeprefix("clip_model.text_model."): value for key, value in weights.items()}
    width = text["final_layer_norm.weight"].shape[0]
    x = text["embeddings.token_embedding.weight"][tokens] + text["embeddings.position_embedding.weight"][: len(tokens)]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(len(tokens))

    def norm(name, x):
        return torch.nn.functional.layer_norm(x, (width,), text[f"{name}.weight"], text[f"{name}.bias"])

    for layer in range(2):
        at = f"encoder.layers.{layer}"
        attention = torch.nn.MultiheadAttention(width, heads)
        parts = [(text[f"{at}.self_attn.{p}_proj.weight"], text[f"{at}.self_attn.{p}_proj.bias"]) for p in "qkv"]
        attention.in_proj_weight.data = torch.cat([weight for weight, _ in parts])
        attention.in_proj_bias.data = torch.cat([bias for _, bias in parts])
        attention.out_proj.weight.data = text[f"{at}.self_attn.out_proj.weight"]
        attention.out_proj.bias.data = text[f"{at}.self_attn.out_proj.bias"]
        h = norm(f"{at}.layer_norm1", x)
        x = x + attention(h, h, h, attn_mask=mask)[0]
        h = norm(f"{at}.layer_norm2", x) @ text[f"{at}.mlp.fc1.weight"].T + text[f"{at}.mlp.fc1.bias"]
        x = x + h * torch.sigmoid(1.702 * h) @ text[f"{at}.mlp.fc2.weight"].T + text[f"{at}.mlp.fc2.bias"]
    return norm("final_layer_norm", x)[-1] @ weights["clip_model.text_projection.weight"].T


def test_a_feature_aligned_checkpoint_alone_is_taken_as_published(tmp_path, capsys):
    """The training writes weights alone: classes by the checkpoint's CLIP, sizes by the weights, the rest tiny-sd's."""
    weights = clip_weights()
    network, linear = feature_aligned(tmp_path / "run", **weights)
    (tmp_path / "run" / "unet_config.json").unlink()
    card, model = converted(
        "feature-aligned", tmp_path / "run", tmp_path, "--set", "attention_head_dim=4,norm_num_groups=8"
    )
    said = capsys.readouterr().out
    assert "preset tiny-sd and --set): sample_size 64, attention_head_dim 4, norm_num_groups 8" in said
    assert "are computed by the checkpoint's own CLIP" in said
    assert card.labels == ("tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose")
    assert card.class_means == (0.3036, 0.4749, 0.3937, 0.2913, 0.5669, 0.4343, 0.8942)
    assert (card.patch, card.defaults["steps"], card.defaults["solver"], card.schedule.variance) == (
        *(64, 1000, "ddpm"),
        "fixed_small",
    )
    job = SampleJob(label="lympho", count=3, accept="published").resolved(card)
    assert job.accept == "0.3036,0.4749,0.3937,0.2913,0.5669,0.4343,0.8942"
    table = read_class_table(job, card)
    with torch.no_grad():
        lympho = text_features(weights, [49406, 20087, 22707, 49407])
        tumor = text_features(weights, [49406, 22616, 49407])
        assert relative(torch.from_numpy(table[[0, 3]]), torch.stack([tumor, lympho])) < 1e-5
        x, t = torch.randn(2, 1, 32, 32), torch.tensor([900, 5])
        expected = network(x, t, linear(torch.from_numpy(table[[3, 0]]))[:, None]).sample
        tokens = model.embed(torch.from_numpy(table[[3, 0]]), None)
        assert relative(model.network(x, t, {"tokens": tokens}), expected) < 1e-5


def test_names_that_the_checkpoints_clip_cannot_embed_are_refused_or_said(tmp_path, capsys):
    feature_aligned(tmp_path / "run", **clip_weights())
    line = refused(tmp_path, capsys, "feature-aligned", tmp_path / "run", "--names", "tumor,lung")
    assert "lung is none of the published names" in line
    card, _ = converted("feature-aligned", tmp_path / "run", tmp_path, "--names", "lympho,tumor")
    assert (card.labels, card.class_means) == (("lympho", "tumor"), (0.2913, 0.3036))
    feature_aligned(tmp_path / "small", **clip_weights(words=100))
    capsys.readouterr()
    card, _ = converted("feature-aligned", tmp_path / "small", tmp_path, "--overwrite")
    assert "its text tower has 100 words" in capsys.readouterr().out
    assert len(card.labels) == 7
    with pytest.raises(ValueError, match="asked for classes by embeddings and holds none"):
        read_class_table(SampleJob(), card)
    (tmp_path / "small" / "unet_config.json").unlink()
    line = refused_elsewhere(tmp_path, capsys, "feature-aligned", tmp_path / "small")
    assert "norm_num_groups is 32 but the network has 16 features" in line


# --- refusals ---


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def refused(tmp_path, capsys, system, checkpoint, *options):
    """The one line that a conversion is refused with; nothing is left on disk."""
    before = tree(tmp_path)
    assert main([system, str(checkpoint), "--out", str(tmp_path / "out"), *map(str, options)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert tree(tmp_path) == before
    return printed.err


@pytest.fixture
def checkpoints(tmp_path):
    """One small checkpoint of each system."""
    nuclei(tmp_path / "sdm")
    large_image(tmp_path, prefix="large-image-diffusion")
    feature_aligned(tmp_path / "feature-aligned")
    for name, kind in (("diffinfinite-image", MaskUNet), ("diffinfinite-labels", LabelUNet)):
        diffinfinite(tmp_path / name / "model-1.pt", random_weights(kind(8, 2, (1, 2), 4, 2)), {"unet": {}})
    return tmp_path


def test_a_checkpoint_of_another_system_is_named(checkpoints, capsys):
    systems = ("diffinfinite-image", "diffinfinite-labels", "large-image-diffusion", "sdm", "feature-aligned")
    for asked in systems:
        for given in systems:
            if asked != given:
                line = refused(checkpoints, capsys, asked, checkpoints / given)
                assert f"no {asked} checkpoint" in line
                assert f"it looks like {given};" in line


def test_a_checkpoint_of_no_known_system_is_said_to_be_none(tmp_path, capsys):
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "a.pt")
    line = refused(tmp_path, capsys, "sdm", tmp_path / "a.pt")
    assert "layer.weight" in line
    assert "known systems" in line
    torch.save({"down_blocks.0.resnets.0.conv1.weight": torch.ones(2)}, tmp_path / "b.pt")
    assert "diffusers' names" in refused(tmp_path, capsys, "sdm", tmp_path / "b.pt")
    torch.save(torch.ones(2), tmp_path / "c.pt")
    assert "holds a Tensor" in refused(tmp_path, capsys, "sdm", tmp_path / "c.pt")


class Bomb:
    """A pickle of it makes a file when it is opened as pickles are."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_anything_else_in_it_is_refused_and_not_run(tmp_path, capsys):
    values = {"a": Bomb(tmp_path / "exploded"), "b": argparse.Namespace(lr=1e-4), "c": torch.nn.Linear(2, 2)}
    for name, value in values.items():
        path = tmp_path / f"{name}.ckpt"
        torch.save({"state_dict": {}, "more": value}, path)
        line = refused(tmp_path, capsys, "large-image-diffusion", path)
        assert "more than tensors and plain values" in line
        assert {"a": "mkdir", "b": "argparse.Namespace", "c": "Linear"}[name] in line
    (tmp_path / "d.pt").write_bytes(pickle.dumps({"a": values["a"]}))
    assert "not opened" in refused(tmp_path, capsys, "sdm", tmp_path / "d.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_checkpoint_is_said_to_be_one(checkpoints, capsys):
    path = checkpoints / "sdm" / "ema_0.9999_000001.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated" in refused(checkpoints, capsys, "sdm", path)
    path.write_text("hello")
    assert "no checkpoint of torch" in refused(checkpoints, capsys, "sdm", path)
    path.write_bytes(b"")
    assert "no checkpoint of torch" in refused(checkpoints, capsys, "sdm", path)
    assert "is not there" in refused(checkpoints, capsys, "sdm", checkpoints / "nowhere.pt")
    (checkpoints / "empty").mkdir()
    assert "holds no checkpoint" in refused(checkpoints, capsys, "sdm", checkpoints / "empty")
    for name in ("a.pt", "b.pt"):
        (checkpoints / "empty" / name).touch()
    assert "2 checkpoints" in refused(checkpoints, capsys, "sdm", checkpoints / "empty")


@pytest.mark.parametrize(
    ("system", "config"),
    [
        ("sdm", "args.json"),
        ("feature-aligned", "unet_config.json"),
        ("large-image-diffusion", "configs/2024-01-01-project.yaml"),
    ],
)
def test_a_missing_or_unreadable_configuration_is_named(checkpoints, capsys, system, config):
    path = checkpoints / system / config
    text = path.read_text()
    path.write_text("{")
    assert str(path) in refused(checkpoints, capsys, system, checkpoints / system)
    path.write_text("{}")
    assert "--config" in refused(checkpoints, capsys, system, checkpoints / system)
    path.unlink()
    for other in path.parent.glob("*.yaml"):
        other.unlink()
    if system == "large-image-diffusion":
        line = refused(checkpoints, capsys, system, checkpoints / system)
        assert Path(config).suffix in line
        assert "--config" in line
    assert "nowhere" in refused(checkpoints, capsys, system, checkpoints / system, "--config", "nowhere.json")
    given = checkpoints / "given.json"
    given.write_text(text)
    assert main([system, str(checkpoints / system), "--out", str(checkpoints / "m"), "--config", str(given)]) == 0


def test_weights_and_configuration_that_do_not_fit_are_refused(checkpoints, capsys):
    args = checkpoints / "sdm" / "args.json"
    text = args.read_text()
    for wrong, said in (
        ('"channel_mult": "1,2,2"', "missing"),
        ('"use_scale_shift_norm": true', "has the shape"),
        ('"learn_sigma": true', "learn_sigma"),
    ):
        args.write_text(text[:-1] + ", " + wrong + "}")  # the last of two equal keys holds
        assert said in refused(checkpoints, capsys, "sdm", checkpoints / "sdm")
    config = checkpoints / "diffinfinite-image" / "config.json"
    config.write_text('{"unet": {"dim": 16, "resnet_block_groups": 2}}')
    line = refused(checkpoints, capsys, "diffinfinite-image", checkpoints / "diffinfinite-image")
    assert "dim is 16" in line
    assert "8" in line
    project = checkpoints / "large-image-diffusion" / "configs" / "2024-01-01-project.yaml"
    text = project.read_text()
    project.write_text(text.replace("0.0195", "0.02"))
    line = refused(checkpoints, capsys, "large-image-diffusion", checkpoints / "large-image-diffusion")
    assert "betas" in line
    project.write_text(text.replace('"use_checkpoint": true', '"resblock_updown": true'))
    line = refused(checkpoints, capsys, "large-image-diffusion", checkpoints / "large-image-diffusion")
    assert "resblock_updown is True" in line


def test_a_checkpoint_without_averaged_weights_is_refused(tmp_path, capsys):
    network = MaskUNet(8, 2, (1, 2), 4, 2)
    torch.save({"step": 1, "model": prefixed(network, "model.")}, tmp_path / "model-1.pt")
    line = refused(tmp_path, capsys, "diffinfinite-image", tmp_path / "model-1.pt")
    assert "averaged weights" in line
    assert "step, model" in line


def test_what_is_there_is_not_replaced_unasked(checkpoints, capsys):
    arguments = ["sdm", str(checkpoints / "sdm"), "--out", str(checkpoints / "out")]
    assert main(arguments) == 0
    before = read_card(str(checkpoints / "out")).hash
    capsys.readouterr()
    assert "--overwrite" in refused(checkpoints, capsys, "sdm", checkpoints / "sdm")
    assert main([*arguments, "--overwrite", "--patch", "16"]) == 0
    assert read_card(str(checkpoints / "out")).hash != before
    thesis = checkpoints / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    capsys.readouterr()
    for extra in ((), ("--overwrite",)):
        assert main(["sdm", str(checkpoints / "sdm"), "--out", str(thesis), *extra]) == 1
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert not [name for name in tree(checkpoints) if "partial" in name or ".old" in name]


def test_a_failed_write_leaves_nothing(checkpoints, capsys, monkeypatch):

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.storage.files.write_json", full)
    assert "No space left" in refused(checkpoints, capsys, "sdm", checkpoints / "sdm")


def test_every_system_is_recognised_and_converted():
    assert set(SYSTEMS) == set(CONVERT) == set(SIGNS)


def test_wrong_options_are_named(checkpoints, capsys):
    sdm = ("sdm", checkpoints / "sdm")
    labels = ("diffinfinite-labels", checkpoints / "diffinfinite-labels")
    image = ("diffinfinite-image", checkpoints / "diffinfinite-image")
    aligned = ("feature-aligned", checkpoints / "feature-aligned")
    assert "invalid choice: 'stable'" in refused(checkpoints, capsys, "stable", checkpoints)
    assert "--patch" in refused(checkpoints, capsys, *sdm, "--patch", "0")
    assert "multiple of 2" in refused(checkpoints, capsys, *sdm, "--patch", "15")
    assert "--vae is an option of diffinfinite" in refused(checkpoints, capsys, *sdm, "--vae", "x")
    assert "5 and 10" in refused(checkpoints, capsys, *labels, "--label-count", "7")
    assert "3 names" in refused(checkpoints, capsys, *image, "--names", "a,b,c")
    assert "--names is an option of diffinfinite" in refused(checkpoints, capsys, *sdm, "--names", "a")
    assert "--pixel-size" in refused(checkpoints, capsys, *sdm, "--pixel-size", "0")
    assert "pass --class-embeddings or --clip too" in refused(checkpoints, capsys, *aligned, "--names", "a")
    assert "expected KEY=VALUE" in refused(checkpoints, capsys, *sdm, "--set", "num_heads")
    assert "--set is an option of sdm" in refused(checkpoints, capsys, *image, "--set", "a=1")
    assert "leave out --preset" in refused(checkpoints, capsys, *sdm, "--preset", "monuseg")
    assert "no diffusers autoencoder" in refused(checkpoints, capsys, *image, "--vae", checkpoints / "nowhere")
    small_autoencoder(checkpoints / "vae", channels=3)
    assert "3 channels" in refused(checkpoints, capsys, *image, "--vae", checkpoints / "vae")
    np.save(checkpoints / "table.npy", np.zeros((3, 100)))
    line = refused(checkpoints, capsys, *aligned, "--class-embeddings", checkpoints / "table.npy")
    assert "(3, 100)" in line
    assert "512" in line
    assert "cannot be read" in refused(checkpoints, capsys, *aligned, "--class-embeddings", checkpoints / "no.npy")
    assert "--names" in refused(checkpoints, capsys, *aligned, "--clip", checkpoints / "vae")


def without(monkeypatch, package):
    """As if a package were not installed."""
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, package, raising=False)


def test_packages_that_are_not_installed_are_named(checkpoints, capsys, monkeypatch):
    aligned = ("feature-aligned", checkpoints / "feature-aligned")
    without(monkeypatch, "transformers")
    line = refused(checkpoints, capsys, *aligned, "--clip", checkpoints / "feature-aligned", "--names", "a")
    assert "config.json" in line
    (checkpoints / "clip").mkdir()
    (checkpoints / "clip" / "config.json").write_text("{}")
    assert "pip install 'slidefield[models]'" in refused(
        checkpoints, capsys, *aligned, "--clip", checkpoints / "clip", "--names", "a"
    )
    without(monkeypatch, "diffusers")
    assert "pip install 'slidefield[models]'" in refused(checkpoints, capsys, *aligned)
