"""What a posterior bought: figures, costs and calibration from its outputs alone."""
