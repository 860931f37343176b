"""How good is what was sampled? Measures of an output beside another set of images, on all ranks."""
