"""Model folders: the card that is read without torch, the networks in them, and the conversion of checkpoints."""
