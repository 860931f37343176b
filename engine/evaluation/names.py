"""Names of the parts of an evaluation, for the command line's help, which does not wait for numpy."""

METRICS = {
    "fid": "Frechet distance: FID, Crop FID, CLIP FID by the features",
    "kid": "KID",
    "precision": "improved precision and recall, density and coverage",
    "copies": "authenticity, C_T and nearest training crops (takes --train)",
    "realism": "densities, spectra and patches, of all and by label, and edges against the interior",
    "seams": "do the lines of windows, shards and the decoder show? (outputs of ours)",
    "areas": "areas, intensities and densities by label, through dask (outputs of ours)",
    "two-sample": "can a small network tell the two sets apart? (a minute)",
}
