"""Training: trainers, evaluation, resuming, interruption, void steps, metering and alarms."""
