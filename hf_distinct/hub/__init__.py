"""To the Hub and back: pushes, downloads and model cards."""
