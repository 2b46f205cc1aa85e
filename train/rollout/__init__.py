"""Graded counterfactual sessions through the configured models: the way to data for whoever has no log yet."""
