"""Models: a spec string and a weights file in, a float classifier of images in [0, 1] out."""
