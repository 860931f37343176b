"""Features of images: what makes them, files of those of slides and folders, and banks of what is like a reference."""
