"""Adapter layers: LoRA, DoRA, LoHa, LoKr and OFT. They know torch and peft, but nothing of a run."""
