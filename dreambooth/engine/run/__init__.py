"""What a training run has around its training: its beginning, its folder, its troubles and what it writes."""
