"""What is measured of data sets alone, without a model."""
