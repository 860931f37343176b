"""Model folders and the networks in them."""
