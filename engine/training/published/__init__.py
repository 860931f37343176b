"""The trainings of the published systems, as their authors train: a file for each network, and what they share."""
