"""What every server shares; it knows nothing of faces, keys or galleries."""
