"""Retrieval with a trained network: features, rank metrics, re-ranking, and the pseudo labels of a whole set."""
