"""Names of the parts of an evaluation, and a default, for the command line's help, which does not wait for numpy."""

QUANTILE = 0.95  # of the usual scores, beyond which an image is not like those of a bank
METRICS = {
    "fid": "Frechet distance: FID, Crop FID, CLIP FID by the features",
    "kid": "KID",
    "precision": "improved precision and recall, density and coverage",
    "copies": "authenticity, C_T and nearest training crops (takes --train)",
    "downstream": "a segmentation network trained on it, tested on --real (takes label maps, and minutes)",
}
