"""Measuring: pictures -> features -> statistics -> number, and reports that say where each number comes from."""
