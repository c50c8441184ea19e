"""Corruptions and transformations: images in, the uint8 pixels that a device would see out."""
