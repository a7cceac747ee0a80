"""What every recipe needs around its work: settings, logs, results."""
