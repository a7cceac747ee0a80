"""What must hold before and during a training; all problems are reported in one error."""
