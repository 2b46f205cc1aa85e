"""Offline reinforcement learning from the gateway's decision log. Never imported by serving."""
