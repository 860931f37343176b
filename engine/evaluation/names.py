"""Names of the parts of an evaluation, and a default, for the command line's help, which does not wait for numpy."""

QUANTILE = 0.95  # of the usual scores, beyond which an image is not like those of a bank
METRICS = {
    "fid": "Frechet distance: FID, Crop FID, CLIP FID by the features",
    "kid": "KID",
    "precision": "improved precision and recall, density and coverage",
    "copies": "authenticity, C_T and nearest training crops (takes --train)",
    "realism": "densities, spectra and patches, of all and by label, and edges against the interior",
    "seams": "do the lines of windows, shards and the decoder show? (outputs of ours)",
    "areas": "areas, intensities and densities by label, through dask (outputs of ours)",
    "two-sample": "can a small network tell the two sets apart? (a minute)",
    "inception-score": "Inception Score (takes features with class logits)",
    "classes": "do judges see the classes that were asked for? (takes --expert)",
    "labels": "do judges see the labels that were asked for? (takes label maps)",
    "nuclei": "areas, colours and contrast of nuclei (takes instance maps)",
    "embeddings": "cosines of embeddings asked for and made (outputs made from embeddings; takes their --features)",
    "variety": "SSIM and LPIPS, or its formula on our own features, of pairs (minutes)",
    "downstream": "a segmentation network trained on it, tested on --real (takes label maps, and minutes)",
}
