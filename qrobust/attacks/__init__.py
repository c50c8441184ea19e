"""Attacks: plain functions from (classifier, images, labels) to adversarial images inside a norm ball."""
