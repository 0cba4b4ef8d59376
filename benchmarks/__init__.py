"""Measurements against peers in the same run; one module each, every one with `main(argv)`. No assertions."""
