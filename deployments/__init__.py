"""Deployments: where the flows run, as code that can be applied again and again. Decides nothing about the work."""
