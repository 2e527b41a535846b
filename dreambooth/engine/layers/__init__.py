"""The layers that are trained beside a model's own."""
