"""Figures: numbers in, SVG out."""
