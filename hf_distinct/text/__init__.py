"""Text that leaves the machine or comes from others: escaped, made portable, merged."""
