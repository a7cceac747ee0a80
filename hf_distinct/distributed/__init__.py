"""Code for several processes: gathering, launch checks, ZeRO-3, DeepSpeed's checkpoints."""
