"""How much memory training and drawing take, and which settings take less."""
