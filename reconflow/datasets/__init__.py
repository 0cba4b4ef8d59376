"""Datasets: reading and validating inputs, and what a validated dataset is."""
