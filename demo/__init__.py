"""Simulated provider and demo; the gateway imports none of this."""
