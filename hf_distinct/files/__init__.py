"""Files: which paths are inside, what may be loaded, what is whole, and whether there is room."""
