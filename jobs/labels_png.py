"""``python jobs/labels_png.py LABELS.zarr MODEL FILE.png``: what a label model sampled, as ``--labels`` takes it.

Cleaned as the label stage of one job cleans it; one pixel for each of the map's, which ``--resize-labels nearest`` then
enlarges.
"""

import sys
from pathlib import Path

from PIL import Image

from engine.models.card import read_card
from engine.pipeline.label_stage import stage_source
from engine.planning.geometry import Box
from engine.storage.files import whole_file
from engine.storage.output import Output

if __name__ == "__main__":
    stage, card, file = Output(Path(sys.argv[1])), read_card(sys.argv[2]), Path(sys.argv[3])
    scale = stage.provenance["label_scale"]
    height, width = (scale * side for side in stage.layout.size)
    labels = stage_source(stage, card, (height, width)).read(0, Box(0, 0, height, width), scale)
    with whole_file(file) as temporary:
        Image.fromarray(labels).save(temporary, "PNG")
