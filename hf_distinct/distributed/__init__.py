"""What spans processes: gathering, launch checks, DeepSpeed's checkpoints."""
