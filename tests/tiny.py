"""A tiny model of random weights."""

from __future__ import annotations

from pathlib import Path

LABELS = ["unknown", "carcinoma", "necrosis", "tumour stroma", "other"]


def make_tiny_model(folder: Path, patch: int = 16) -> Path:
    """A model of random weights: windows of 16 latents, or another even number, 8 px a latent, 5 labels."""
    import torch

    from engine.models.card import colored
    from engine.models.folder import save_part
    from engine.models.networks.mask_unet import MaskUNet
    from engine.training.diffusion import write_folder
    from engine.training.image import PARTS, SCHEDULER

    torch.manual_seed(0)
    save_autoencoder(folder)
    save_part(MaskUNet(8, len(LABELS), (1, 2), 4, 2), folder / "unet")
    facts = {"patch_size": patch, "pixel_size_um": 0.5, "labels": colored(LABELS)}
    facts["defaults"] = {"steps": 25, "solver": "ddim", "guidance": 2.0, "batch_size": 2}
    write_folder(folder, PARTS, SCHEDULER, facts)
    return folder


def save_autoencoder(folder: Path, std: float = 0.1) -> None:
    import torch

    from engine.models.folder import save_part
    from engine.models.networks.autoencoder import PatchAutoencoder

    autoencoder = PatchAutoencoder(latent_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1))
    for weights in autoencoder.parameters():
        torch.nn.init.normal_(weights, 0, std)
    save_part(autoencoder, folder / "vae")


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


def make_tiny_label_model(folder: Path, patch: int = 8, scale: int = 4, grey: bool = False) -> Path:
    """A label model of random weights, a channel a label: windows of 8 label pixels of 4 px each.

    Args:
        grey: Whether its maps are grey pictures, decoded from latents of 8 label pixels, as DiffInfinite's are.
    """
    import torch

    from engine.models.card import colored
    from engine.models.folder import save_part
    from engine.models.networks.mask_unet import LabelUNet
    from engine.training.diffusion import write_folder
    from engine.training.image import PARTS
    from engine.training.labels import SCHEDULER

    torch.manual_seed(2)
    network = LabelUNet(8, len(LABELS), (1, 2), 4 if grey else len(LABELS), 2, attention_from=1)
    save_part(network, folder / "unet")
    facts = {"role": "labels", "condition": "class", "patch_size": patch, "label_scale": scale}
    facts |= {"label_count": len(LABELS), "labels": colored(LABELS), "pixel_size_um": 0.5 * scale}
    facts["defaults"] = {"steps": 3, "solver": "ddpm", "guidance": 1.0, "batch_size": 8}
    if grey:
        save_autoencoder(folder, 0.12)  # few specks in much of one label: some is left once they are cleaned
    else:
        facts["space"] = "pixels"
    parts = {name: part for name, part in PARTS.items() if grey and name != "unet"}
    write_folder(folder, {**parts, "unet": ["slidefield", "LabelUNet"]}, SCHEDULER, facts)
    return folder
