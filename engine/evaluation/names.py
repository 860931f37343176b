"""Names of the parts of an evaluation, for the command line's help, which does not wait for numpy."""

METRICS = {
    "fid": "Frechet distance: FID, Crop FID, CLIP FID by the features",
    "kid": "KID",
    "precision": "improved precision and recall, density and coverage",
    "copies": "authenticity, C_T and nearest training crops (takes --train)",
}
