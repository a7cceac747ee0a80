"""What surrounds a step: evaluating, resuming, void steps, interruption, checkpoints, meters and alarms."""
