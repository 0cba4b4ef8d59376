"""Flows: the order of the work. They decide no geometry."""
