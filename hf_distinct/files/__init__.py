"""Files: permitted paths, safe loading, complete writing, digests, locks and disk space."""
