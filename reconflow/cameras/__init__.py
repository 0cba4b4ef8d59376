"""Cameras: the one camera type, the six-axis rig, file conventions, and calibration from silhouettes and depth."""
