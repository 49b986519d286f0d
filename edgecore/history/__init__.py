"""History: recent reported values, when asked to keep them."""
