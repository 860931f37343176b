"""An output as files for other programs: folders of PNG and TIFF."""
