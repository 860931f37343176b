"""A tiny model of random weights."""

from __future__ import annotations

from pathlib import Path

LABELS = ["unknown", "carcinoma", "necrosis", "tumour stroma", "other"]


def make_tiny_model(folder: Path, patch: int = 16) -> Path:
    """A model of random weights: windows of 16 latents, or another even number, 8 px a latent, 5 labels."""
    import torch

    from engine.models.card import colored
    from engine.models.folder import save_part
    from engine.models.networks.autoencoder import PatchAutoencoder
    from engine.models.networks.mask_unet import MaskUNet
    from engine.training.diffusion import write_folder
    from engine.training.image import PARTS, SCHEDULER

    torch.manual_seed(0)
    autoencoder = PatchAutoencoder(latent_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1))
    for weights in autoencoder.parameters():
        torch.nn.init.normal_(weights, 0, 0.1)
    save_part(autoencoder, folder / "vae")
    save_part(MaskUNet(8, len(LABELS), (1, 2), 4, 2), folder / "unet")
    facts = {"patch_size": patch, "pixel_size_um": 0.5, "labels": colored(LABELS)}
    facts["defaults"] = {"steps": 25, "solver": "ddim", "guidance": 2.0, "batch_size": 2}
    write_folder(folder, PARTS, SCHEDULER, facts)
    return folder


def make_tiny_pixel_model(folder: Path, patch: int = 16) -> Path:
    """A model of pixels of random weights: windows of 16 px, or another even number, 5 labels."""
    import torch

    from engine.models.card import colored
    from engine.models.folder import save_part
    from engine.models.networks.mask_unet import MaskUNet
    from engine.training.diffusion import write_folder
    from engine.training.image import SCHEDULER

    torch.manual_seed(1)
    save_part(MaskUNet(8, len(LABELS), (1, 2), 3, 2), folder / "unet")
    facts = {"patch_size": patch, "pixel_size_um": 0.5, "labels": colored(LABELS), "space": "pixels"}
    facts["defaults"] = {"steps": 25, "solver": "ddim", "guidance": 2.0, "batch_size": 2}
    write_folder(folder, {"unet": ["slidefield", "MaskUNet"]}, SCHEDULER, facts)
    return folder


def make_tiny_label_model(folder: Path, patch: int = 8, scale: int = 4) -> Path:
    """A label model of random weights, a channel a label: windows of 8 label pixels of 4 px each."""
    import torch

    from engine.models.card import colored
    from engine.models.folder import save_part
    from engine.models.networks.mask_unet import LabelUNet
    from engine.training.diffusion import write_folder
    from engine.training.labels import SCHEDULER

    torch.manual_seed(2)
    save_part(LabelUNet(8, len(LABELS), (1, 2), len(LABELS), 2, attention_from=1), folder / "unet")
    facts = {"role": "labels", "condition": "class", "space": "pixels", "patch_size": patch, "label_scale": scale}
    facts |= {"label_count": len(LABELS), "labels": colored(LABELS), "pixel_size_um": 0.5 * scale}
    facts["defaults"] = {"steps": 3, "solver": "ddpm", "guidance": 1.0, "batch_size": 2}
    write_folder(folder, {"unet": ["slidefield", "LabelUNet"]}, SCHEDULER, facts)
    return folder
