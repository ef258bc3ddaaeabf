"""Plots as inline SVG, drawn by hand: colors are classes, which the page's style sheet defines."""
