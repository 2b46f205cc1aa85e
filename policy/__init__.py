"""What the agent sees and does: observation, policies, network, checkpoints. JAX and NumPy only."""
