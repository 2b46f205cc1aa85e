"""Observations, policies, networks and checkpoints of the routing agent. JAX and NumPy only."""
