"""Folders that diffusers saved are models as they are."""

import json

import pytest
import torch

from engine.models.card import read_card
from engine.models.files import WEIGHTS
from engine.models.folder import check_model_folder, load_model

diffusers = pytest.importorskip("diffusers")
torch.set_num_threads(1)
BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}


def unconditional(channels=3, **more):
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    settings = {"sample_size": 16, "attention_head_dim": 8, **kinds, **BLOCKS, **more}
    return diffusers.UNet2DModel(in_channels=channels, out_channels=channels, **settings).eval()


def conditional(channels=4, outputs=4, **more):
    torch.manual_seed(0)
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    settings = {"sample_size": 16, "cross_attention_dim": 24, "attention_head_dim": 2, **kinds, **BLOCKS, **more}
    return diffusers.UNet2DConditionModel(in_channels=channels, out_channels=outputs, **settings).eval()


def autoencoder(channels=4, **more):
    torch.manual_seed(1)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(latent_channels=channels, sample_size=32, **kinds, **BLOCKS, **more).eval()


def save(folder, scheduler, **parts):
    """As a pipeline's save_pretrained writes it."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    index = {name: ["diffusers", type(part).__name__] for name, part in (*parts.items(), ("scheduler", scheduler))}
    index |= {"_class_name": "SomePipeline", "text_encoder": ["transformers", "CLIPTextModel"], "checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def relative(tensor, expected):
    return float((tensor - expected).norm() / expected.norm())


def test_a_pipeline_of_pixels(tmp_path):
    unet = unconditional()
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    card, model = read_card(str(tmp_path)), load_model(tmp_path)
    assert (card.condition, card.has_null, card.factor, card.channels, card.patch) == ("none", False, 1, 3, 16)
    assert (card.labels, card.decodes, card.pixel_range) == (("image",), True, (-1, 1))
    assert (card.schedule.clip, card.schedule.num_train_timesteps) == (1, 1000)
    assert (model.decode, model.encode, model.embed) == (None, None, None)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([900, 5])
    with torch.inference_mode():
        assert relative(model.network(x, t, {}), unet(x, t).sample) < 1e-5


def test_a_pipeline_of_latents_and_tokens(tmp_path):
    unet, vae = conditional(), autoencoder(scaling_factor=0.2, shift_factor=0.3)
    scheduler = diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    save(tmp_path, scheduler, unet=unet, vae=vae)
    card, model = read_card(str(tmp_path)), load_model(tmp_path)
    assert (card.condition, card.embedding_width, card.factor, card.channels) == ("embedding", 24, 2, 4)
    assert (card.schedule.clip, card.schedule.prediction, card.schedule.steps_offset) == (None, "epsilon", 1)
    x, t, tokens = torch.randn(2, 4, 16, 16), torch.tensor([900, 5]), torch.randn(2, 3, 24)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        assert relative(model.network(x, t, {"tokens": tokens}), unet(x, t, tokens).sample) < 1e-5
        assert relative(model.decode(x), vae.decode(x / 0.2 + 0.3).sample) < 1e-5
        assert relative(model.encode(image), (vae.encode(image).latent_dist.mean - 0.3) * 0.2) < 1e-5


def test_a_pipeline_with_a_codebook(tmp_path):
    unet = unconditional()
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vqvae = diffusers.VQModel(num_vq_embeddings=9, scaling_factor=0.5, **kinds, **BLOCKS).eval()
    diffusers.LDMPipeline(vqvae, unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    card, model = read_card(str(tmp_path)), load_model(tmp_path)
    assert (card.condition, card.factor, card.channels, card.decodes) == ("none", 2, 3, True)
    z = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        assert relative(model.decode(z), vqvae.decode(z / 0.5).sample) < 1e-5


def test_a_tiny_autoencoder(tmp_path):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    save(tmp_path, diffusers.DDIMScheduler(), unet=conditional(), vae=vae)
    card, model = read_card(str(tmp_path)), load_model(tmp_path)
    z, image = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16) * 2 - 1
    assert card.factor == 2
    with torch.inference_mode():
        assert relative(model.decode(z), vae.decode(z).sample) < 1e-5
        assert relative(model.encode(image), vae.encode(image).latents) < 1e-5


def test_autoencoders_saved_with_the_old_names_of_attention(tmp_path):
    from safetensors.torch import load_file, save_file

    vae = autoencoder()
    save(tmp_path, diffusers.DDIMScheduler(), unet=conditional(), vae=vae)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = tmp_path / "vae" / WEIGHTS
    tensors = {}
    for key, value in load_file(weights).items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        tensors[key] = value
    assert any("query" in key for key in tensors)
    save_file(tensors, weights)
    check_model_folder(tmp_path)
    z = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        assert relative(load_model(tmp_path).decode(z), vae.decode(z / 0.18215).sample) < 1e-5


def test_half_precision_weights_run_in_the_type_that_is_asked_for(tmp_path):
    save(tmp_path, diffusers.DDIMScheduler(), unet=conditional().half(), vae=autoencoder().half())
    x, t, tokens = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 1, 24)
    whole, half = load_model(tmp_path), load_model(tmp_path, torch.bfloat16)
    with torch.inference_mode():
        expected = whole.network(x, t, {"tokens": tokens})
        output = half.network(x.bfloat16(), t, {"tokens": tokens.bfloat16()})
        assert expected.dtype == torch.float32
        assert relative(output.float(), expected) < 0.05
        assert half.decode(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("unet", "scheduler", "said"),
    [
        ({"channels": 9}, {}, "takes 9 channels"),
        ({"outputs": 8}, {}, "gives 8 channels for 4"),
        ({"sample_size": None}, {}, "no sample_size"),
        ({"sample_size": 15}, {}, "multiple of 2"),
        ({"num_class_embeds": 3}, {}, "num_class_embeds is 3"),
        ({}, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
    ids=str,
)
def test_networks_for_other_ends_are_refused(tmp_path, unet, scheduler, said):
    save(tmp_path, diffusers.DDIMScheduler(**scheduler), unet=conditional(**unet), vae=autoencoder())
    with pytest.raises(ValueError, match=said):
        read_card(str(tmp_path))


def test_other_folders_of_diffusers_are_refused(tmp_path):
    save(tmp_path, diffusers.DDIMScheduler(), unet=conditional(), vae=autoencoder())
    weights = tmp_path / "unet" / WEIGHTS
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="is a pickle"):
        read_card(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiT"]}')
    with pytest.raises(ValueError, match="names no unet"):
        read_card(str(tmp_path))


def test_weights_of_another_network_are_found_without_reading_them(tmp_path):
    save(tmp_path, diffusers.DDIMScheduler(), unet=conditional(), vae=autoencoder())
    check_model_folder(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 24', '"cross_attention_dim": 32'))
    with pytest.raises(ValueError, match="do not fit each other"):
        check_model_folder(tmp_path)
