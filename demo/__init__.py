"""A simulated provider and the demonstration that drives it; the gateway imports none of this."""
