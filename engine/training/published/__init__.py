"""The trainings of the published systems, as their authors train: one file a system."""
