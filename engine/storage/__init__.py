"""Files: outputs with their ledgers and checkpoints, and inputs. No other room imports zarr or h5py."""
