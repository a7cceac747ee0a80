"""Texts that leave the machine or come from others: escaped, made portable, merged."""
