"""An output as files for other programs: slides, pictures, DICOM, and folders of PNG and TIFF."""
