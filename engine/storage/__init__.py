"""Files: the output, its ledger, its checkpoints, the inputs. The only room that imports zarr and h5py."""
