"""How good the images are: networks that look at them, and the distances made from what those networks see."""
