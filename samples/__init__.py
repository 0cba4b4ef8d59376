"""Licence-free sample datasets with known truth, made from procedurally modelled objects by `make_sample`."""
