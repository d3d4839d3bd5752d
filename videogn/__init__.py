"""Video classification with Group Normalization (Wu and He, 2018, section 4.3)."""
